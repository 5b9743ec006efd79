// TLS at the edges, from PEM files that may be replaced while the program runs.
//
// Files are read again every second (TlsReload); connections made from then on use what is there,
// those that stand are not touched. They may be replaced in place, by renaming, or through a
// symbolic link above them. What cannot be used is not taken, as certificate and key that do not
// belong together.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/security/server_credentials.h"
#include "rpc/tls_reload.h"

namespace lckv {

// Paths; empty: not given.
struct TlsServerFiles {
  std::string certificate;  // the chain, leaf first
  std::string key;
  std::string client_ca;  // given: clients must show a certificate that it signed
};

struct TlsClientFiles {
  std::string ca;           // of servers; empty: no TLS
  std::string certificate;  // shown to servers that ask; with its key, or neither
  std::string key;
};

// Plaintext where no certificate is given. InvalidArgument naming the flag that is missing beside
// another, or the file that cannot be used. `flag_prefix` "--tls" makes a flag "--tls-key".
// Changes come with `reload`, which may go before the credentials do.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> make_server_credentials(
    const TlsServerFiles& files, TlsReload& reload);
// Null where no CA is given.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> make_channel_credentials(
    const TlsClientFiles& files, const std::string& flag_prefix, TlsReload& reload);

// Of peers that are equals: each shows its certificate and wants one that the other's CA signed.
struct TlsPeerFiles {
  TlsClientFiles files;
  std::string server_name;  // that the certificate must have; empty: the one connected to

  TlsServerFiles as_server() const {
    return {.certificate = files.certificate, .key = files.key, .client_ca = files.ca};
  }
};

}  // namespace lckv
