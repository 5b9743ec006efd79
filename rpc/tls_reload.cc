#include "rpc/tls_reload.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "rpc/watched_file.h"
#include "spdlog/spdlog.h"

namespace lckv {
namespace {

constexpr absl::Duration kInterval = absl::Seconds(1);

template <typename T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

Owned<BIO> bytes_of(const std::string& content) {
  return {BIO_new_mem_buf(content.data(), static_cast<int>(content.size())), &BIO_free_all};
}

// Of the last read: there was nothing more, rather than something broken.
bool at_end() { return ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE; }

bool use_chain(SSL_CTX* tls, const std::string& content) {
  const auto bytes = bytes_of(content);
  const Owned<X509> leaf(PEM_read_bio_X509_AUX(bytes.get(), nullptr, nullptr, nullptr), &X509_free);
  if (leaf == nullptr || SSL_CTX_use_certificate(tls, leaf.get()) != 1) return false;
  while (X509* const above = PEM_read_bio_X509(bytes.get(), nullptr, nullptr, nullptr)) {
    if (SSL_CTX_add0_chain_cert(tls, above) == 1) continue;
    X509_free(above);
    return false;
  }
  return at_end();
}

bool use_key(SSL_CTX* tls, const std::string& content) {
  const auto bytes = bytes_of(content);
  const Owned<EVP_PKEY> key(PEM_read_bio_PrivateKey(bytes.get(), nullptr, nullptr, nullptr),
                            &EVP_PKEY_free);
  return key != nullptr && SSL_CTX_use_PrivateKey(tls, key.get()) == 1 &&
         SSL_CTX_check_private_key(tls) == 1;
}

bool holds_certificates(const std::string& content) {
  const auto bytes = bytes_of(content);
  int count = 0;
  for (;; ++count) {
    const Owned<X509> ca(PEM_read_bio_X509_AUX(bytes.get(), nullptr, nullptr, nullptr), &X509_free);
    if (ca == nullptr) return count > 0 && at_end();
  }
}

absl::Status unusable(const FlaggedFile& file, absl::string_view why) {
  ERR_clear_error();
  return absl::InvalidArgumentError(absl::StrCat(file.flag, ": ", file.path, " ", why));
}

absl::Status check(const std::vector<FlaggedFile>& files,
                   const std::vector<std::string>& contents) {
  ERR_clear_error();
  if (files.size() == 1) {
    if (!holds_certificates(contents[0])) return unusable(files[0], "holds no certificate in PEM");
  } else {
    const Owned<SSL_CTX> tls(SSL_CTX_new(TLS_method()), &SSL_CTX_free);
    if (!use_chain(tls.get(), contents[0])) {
      return unusable(files[0], "holds no certificate in PEM");
    }
    if (!use_key(tls.get(), contents[1])) {
      return unusable(files[1], "holds no key in PEM that fits the certificate");
    }
  }
  ERR_clear_error();
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> TlsReload::add_pair(const FlaggedFile& certificate,
                                                const FlaggedFile& key) {
  return add({certificate, key});
}

absl::StatusOr<std::string> TlsReload::add_ca(const FlaggedFile& ca) { return add({ca}); }

absl::StatusOr<std::string> TlsReload::add(std::vector<FlaggedFile> files) {
  auto part = std::make_unique<Part>();
  part->files = std::move(files);
  if (absl::Status status = take_over(*part); !status.ok()) return status;
  parts_.push_back(std::move(part));
  return parts_.back()->copy.path();
}

absl::Status TlsReload::take_over(Part& part) {
  std::vector<std::string> contents;
  for (const FlaggedFile& file : part.files) {
    auto content = read_small_file(file.path);
    if (!content.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(file.flag, ": ", content.status().message()));
    }
    contents.push_back(*std::move(content));
  }
  // One file for both, so that nobody can read the one of before and the other of now.
  std::string all = contents[0];
  if (contents.back() != contents[0]) absl::StrAppend(&all, "\n", contents.back());
  if (all == part.taken) return absl::OkStatus();
  if (absl::Status status = check(part.files, contents); !status.ok()) return status;
  if (absl::Status status = part.copy.write(all); !status.ok()) return status;
  part.taken = std::move(all);
  return absl::OkStatus();
}

void TlsReload::look(Part& part) {
  const absl::Status status = take_over(part);
  const std::string wrong(status.message());
  if (!status.ok() && wrong == part.wrong && wrong != part.logged) {
    spdlog::warn("{}; what it held before stays in use", wrong);
    part.logged = wrong;
  }
  if (status.ok() && !part.logged.empty()) {
    const auto name = [](std::string* to, const FlaggedFile& file) {
      absl::StrAppend(to, file.flag, " ", file.path);
    };
    spdlog::info("right again and in use: {}", absl::StrJoin(part.files, ", ", name));
    part.logged.clear();
  }
  part.wrong = wrong;
}

void TlsReload::poll(absl::Time now) {
  if (now < due_) return;
  due_ = now + kInterval;
  for (const auto& part : parts_) look(*part);
}

bool TlsReload::stale() const {
  return std::any_of(parts_.begin(), parts_.end(),
                     [](const auto& part) { return !part->logged.empty(); });
}

}  // namespace lckv
