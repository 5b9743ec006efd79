#include "rpc/tls_flags.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <array>

#include "absl/strings/str_cat.h"

namespace lckv {

void add_tls_server_flags(CLI::App& app, TlsServerFiles& files, const std::string& group) {
  const auto add = [&](const char* flag, std::string& target, const char* help) {
    app.add_option(flag, target, help)->type_name("FILE")->group(group);
  };
  add("--tls-cert", files.certificate, "Own certificate and its chain, PEM; read again on change");
  add("--tls-key", files.key, "Its private key, PEM; read again on change");
  add("--tls-client-ca", files.client_ca,
      "Clients must show a certificate signed by it, PEM; read again on change");
}

void add_tls_client_flags(CLI::App& app, const std::string& prefix, TlsClientFiles& files,
                          std::string& server_name, const std::string& group) {
  const auto add = [&](const char* flag, std::string& target, const char* type, const char* help) {
    app.add_option(absl::StrCat(prefix, flag), target, help)->type_name(type)->group(group);
  };
  add("-ca", files.ca, "FILE", "TLS, with a server certificate signed by it, PEM");
  add("-cert", files.certificate, "FILE", "Own certificate for servers that ask for one, PEM");
  add("-key", files.key, "FILE", "Its private key, PEM");
  add("-server-name", server_name, "NAME",
      "That the server's certificate must have; default: the one connected to");
}

void add_plaintext_flag(CLI::App& app, bool& allow_plaintext, const std::string& group) {
  app.add_flag("--allow-plaintext", allow_plaintext,
               "Speak without TLS beyond this machine, readable for everyone on the way")
      ->group(group);
}

absl::Status check_plaintext(const std::string& host, const TlsServerFiles& files,
                             bool allow_plaintext) {
  if (allow_plaintext || !files.certificate.empty() || is_loopback(host)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "--host ", host,
      " is seen beyond this machine: give --tls-cert and --tls-key, or --allow-plaintext"));
}

bool is_loopback(const std::string& host) {
  std::array<unsigned char, sizeof(in6_addr)> bytes;
  if (host == "localhost") return true;
  if (inet_pton(AF_INET, host.c_str(), bytes.data()) == 1) return bytes[0] == 127;
  in6_addr address;
  return inet_pton(AF_INET6, host.c_str(), &address) == 1 && IN6_IS_ADDR_LOOPBACK(&address);
}

}  // namespace lckv
