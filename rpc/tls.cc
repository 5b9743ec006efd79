#include "rpc/tls.h"

#include <openssl/ssl.h>

#include "absl/strings/str_cat.h"
#include "grpcpp/security/tls_certificate_provider.h"
#include "grpcpp/security/tls_credentials_options.h"

namespace lckv {
namespace {

using grpc::experimental::FileWatcherCertificateProvider;

constexpr unsigned kRefreshSeconds = 1;

// A program ends while threads of gRPC's may still be shaking hands: OpenSSL is not taken down
// under them. Before its first use.
void keep_openssl_until_the_end() { OPENSSL_init_crypto(OPENSSL_INIT_NO_ATEXIT, nullptr); }

absl::Status check_together(const std::string& prefix, const std::string& certificate,
                            const std::string& key) {
  if (certificate.empty() == key.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(prefix, "-cert and ", prefix, "-key belong together"));
}

// What gRPC is to read; empty: nothing.
struct Copies {
  std::string pair;
  std::string ca;
};

struct PemFiles {
  std::string prefix;  // of the flags
  std::string certificate, key;
  std::string ca_flag, ca;
};

absl::StatusOr<Copies> copy_files(const PemFiles& files, TlsReload& reload) {
  keep_openssl_until_the_end();
  Copies copies;
  if (!files.certificate.empty()) {
    auto pair = reload.add_pair({absl::StrCat(files.prefix, "-cert"), files.certificate},
                                {absl::StrCat(files.prefix, "-key"), files.key});
    if (!pair.ok()) return pair.status();
    copies.pair = *std::move(pair);
  }
  if (!files.ca.empty()) {
    auto ca = reload.add_ca({files.ca_flag, files.ca});
    if (!ca.ok()) return ca.status();
    copies.ca = *std::move(ca);
  }
  return copies;
}

std::shared_ptr<FileWatcherCertificateProvider> watch(const Copies& copies) {
  return std::make_shared<FileWatcherCertificateProvider>(copies.pair, copies.pair, copies.ca,
                                                          kRefreshSeconds);
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> make_server_credentials(
    const TlsServerFiles& files, TlsReload& reload) {
  if (auto status = check_together("--tls", files.certificate, files.key); !status.ok()) {
    return status;
  }
  if (files.certificate.empty()) {
    if (files.client_ca.empty()) return grpc::InsecureServerCredentials();
    return absl::InvalidArgumentError("--tls-client-ca needs --tls-cert and --tls-key");
  }
  const auto copies = copy_files({.prefix = "--tls",
                                  .certificate = files.certificate,
                                  .key = files.key,
                                  .ca_flag = "--tls-client-ca",
                                  .ca = files.client_ca},
                                 reload);
  if (!copies.ok()) return copies.status();
  grpc::experimental::TlsServerCredentialsOptions options(watch(*copies));
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
    const TlsClientFiles& files, const std::string& flag_prefix, TlsReload& reload) {
  const std::string ca_flag = absl::StrCat(flag_prefix, "-ca");
  if (auto status = check_together(flag_prefix, files.certificate, files.key); !status.ok()) {
    return status;
  }
  if (files.ca.empty()) {
    if (files.certificate.empty()) return nullptr;
    return absl::InvalidArgumentError(
        absl::StrCat(flag_prefix, "-cert needs ", ca_flag, ", which the server is checked by"));
  }
  const auto copies = copy_files({.prefix = flag_prefix,
                                  .certificate = files.certificate,
                                  .key = files.key,
                                  .ca_flag = ca_flag,
                                  .ca = files.ca},
                                 reload);
  if (!copies.ok()) return copies.status();
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(watch(*copies));
  options.watch_root_certs();
  if (!files.certificate.empty()) options.watch_identity_key_cert_pairs();
  return grpc::experimental::TlsCredentials(options);
}

}  // namespace lckv
