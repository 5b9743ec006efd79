#include "rpc/tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>

#include <vector>

#include "absl/strings/str_cat.h"
#include "grpcpp/security/tls_certificate_provider.h"
#include "grpcpp/security/tls_credentials_options.h"
#include "rpc/watched_file.h"

namespace lckv {
namespace {

using grpc::experimental::FileWatcherCertificateProvider;

constexpr unsigned kRefreshSeconds = 1;

// A program ends while threads of gRPC's may still be shaking hands: OpenSSL is not taken down
// under them. Before its first use.
void keep_openssl_until_the_end() { OPENSSL_init_crypto(OPENSSL_INIT_NO_ATEXIT, nullptr); }

absl::Status unusable(const std::string& flag, const std::string& path, absl::string_view why) {
  ERR_clear_error();
  return absl::InvalidArgumentError(absl::StrCat(flag, ": ", path, " ", why));
}

absl::Status check_readable(const std::string& flag, const std::string& path) {
  const auto content = read_small_file(path);
  if (content.ok()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(flag, ": ", content.status().message()));
}

struct PemPair {
  std::string certificate_flag, certificate;
  std::string key_flag, key;
};

// gRPC would say nothing at the start and fail every handshake.
absl::Status check_pair(const PemPair& pair) {
  keep_openssl_until_the_end();
  if (pair.certificate.empty() != pair.key.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(pair.certificate_flag, " and ", pair.key_flag, " belong together"));
  }
  if (pair.certificate.empty()) return absl::OkStatus();
  if (auto s = check_readable(pair.certificate_flag, pair.certificate); !s.ok()) return s;
  if (auto s = check_readable(pair.key_flag, pair.key); !s.ok()) return s;
  const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> tls(SSL_CTX_new(TLS_method()),
                                                              &SSL_CTX_free);
  if (SSL_CTX_use_certificate_chain_file(tls.get(), pair.certificate.c_str()) != 1) {
    return unusable(pair.certificate_flag, pair.certificate, "holds no certificate in PEM");
  }
  if (SSL_CTX_use_PrivateKey_file(tls.get(), pair.key.c_str(), SSL_FILETYPE_PEM) != 1) {
    return unusable(pair.key_flag, pair.key, "holds no key in PEM that fits the certificate");
  }
  return absl::OkStatus();
}

absl::Status check_ca(const std::string& flag, const std::string& path) {
  if (auto status = check_readable(flag, path); !status.ok()) return status;
  const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> tls(SSL_CTX_new(TLS_method()),
                                                              &SSL_CTX_free);
  if (SSL_CTX_load_verify_locations(tls.get(), path.c_str(), nullptr) != 1) {
    return unusable(flag, path, "holds no certificate in PEM");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> make_server_credentials(
    const TlsServerFiles& files) {
  if (auto status = check_pair({"--tls-cert", files.certificate, "--tls-key", files.key});
      !status.ok()) {
    return status;
  }
  if (files.certificate.empty()) {
    if (files.client_ca.empty()) return grpc::InsecureServerCredentials();
    return absl::InvalidArgumentError("--tls-client-ca needs --tls-cert and --tls-key");
  }
  if (!files.client_ca.empty()) {
    if (auto status = check_ca("--tls-client-ca", files.client_ca); !status.ok()) return status;
  }
  grpc::experimental::TlsServerCredentialsOptions options(
      std::make_shared<FileWatcherCertificateProvider>(files.key, files.certificate,
                                                       files.client_ca, kRefreshSeconds));
  options.watch_identity_key_cert_pairs();
  if (files.client_ca.empty()) {
    options.set_cert_request_type(GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  } else {
    options.watch_root_certs();
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return grpc::experimental::TlsServerCredentials(options);
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> make_channel_credentials(
    const TlsClientFiles& files, const std::string& flag_prefix) {
  const std::string ca_flag = absl::StrCat(flag_prefix, "-ca");
  if (auto status = check_pair({absl::StrCat(flag_prefix, "-cert"), files.certificate,
                                absl::StrCat(flag_prefix, "-key"), files.key});
      !status.ok()) {
    return status;
  }
  if (files.ca.empty()) {
    if (files.certificate.empty()) return nullptr;
    return absl::InvalidArgumentError(
        absl::StrCat(flag_prefix, "-cert needs ", ca_flag, ", which the server is checked by"));
  }
  if (auto status = check_ca(ca_flag, files.ca); !status.ok()) return status;
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(std::make_shared<FileWatcherCertificateProvider>(
      files.key, files.certificate, files.ca, kRefreshSeconds));
  options.watch_root_certs();
  if (!files.certificate.empty()) options.watch_identity_key_cert_pairs();
  return grpc::experimental::TlsCredentials(options);
}

}  // namespace lckv
