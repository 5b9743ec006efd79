// The flags of TLS and of what is allowed without it, as all programs have them.
#pragma once

#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "rpc/tls.h"

namespace lckv {

// --tls-cert, --tls-key, --tls-client-ca.
void add_tls_server_flags(CLI::App& app, TlsServerFiles& files, const std::string& group);
// PREFIX-ca, -cert, -key, -server-name; `prefix` is "--tls" or "--worker-tls".
void add_tls_client_flags(CLI::App& app, const std::string& prefix, TlsClientFiles& files,
                          std::string& server_name, const std::string& group);
void add_plaintext_flag(CLI::App& app, bool& allow_plaintext, const std::string& group);

// InvalidArgument where `host`, to listen on, is seen beyond this machine and nothing protects it.
absl::Status check_plaintext(const std::string& host, const TlsServerFiles& files,
                             bool allow_plaintext);

// Of an address, or the name localhost: 127.0.0.0/8 or ::1.
bool is_loopback(const std::string& host);

}  // namespace lckv
