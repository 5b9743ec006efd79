// Files of TLS that are replaced: what gRPC gets to read, and what is logged.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "rpc/memory_file.h"
#include "rpc/tls_reload.h"
#include "rpc/watched_file.h"
#include "spdlog/sinks/ostream_sink.h"
#include "spdlog/spdlog.h"

namespace lckv {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string read(const std::string& path) { return read_small_file(path).value(); }

class TlsReloadTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / absl::StrCat("lckv-tls-test-", getpid());
    const std::string make = absl::StrCat("deploy/test-certificates.sh ", folder_.string());
    ASSERT_EQ(std::system(make.c_str()), 0);
    const auto sink = std::make_shared<spdlog::sinks::ostream_sink_mt>(log_);
    spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", sink));
    spdlog::set_pattern("%l %v");
  }
  void TearDown() override {
    spdlog::set_default_logger(before_);
    std::filesystem::remove_all(folder_);
  }

  std::string path(const std::string& name) const { return folder_ / name; }
  void write(const std::string& name, const std::string& content) const {
    std::ofstream(path(name)) << content;
  }
  void add_pair() {
    auto copy =
        reload_.add_pair({"--tls-cert", path("router.crt")}, {"--tls-key", path("router.key")});
    ASSERT_TRUE(copy.ok()) << copy.status();
    copy_ = *copy;
    first_ = read(copy_);
  }
  // What one more look logs.
  std::string look() {
    log_.str("");
    now_ += absl::Seconds(1);
    reload_.poll(now_);
    return log_.str();
  }

  const std::shared_ptr<spdlog::logger> before_ = spdlog::default_logger();
  std::ostringstream log_;
  std::filesystem::path folder_;
  absl::Time now_ = absl::FromUnixSeconds(1000);
  TlsReload reload_;
  std::string copy_;   // where gRPC reads
  std::string first_;  // what was there first
};

TEST_F(TlsReloadTest, WhatCannotBeUsedIsToldOnceAndKeptFromGrpc) {
  add_pair();
  const std::string good = read(path("router.crt"));
  const std::string line = absl::StrCat("--tls-cert: ", path("router.crt"));
  for (const std::string& bad : {std::string(), std::string("no certificate"),
                                 good.substr(0, good.size() / 2), good + good.substr(0, 100)}) {
    write("router.crt", bad);
    EXPECT_THAT(look(), IsEmpty()) << bad;
    EXPECT_EQ(look(), absl::StrCat("warning ", line,
                                   " holds no certificate in PEM; what it held before stays in "
                                   "use\n"));
    EXPECT_TRUE(reload_.stale());
    EXPECT_THAT(look(), IsEmpty());
    EXPECT_EQ(read(copy_), first_);
    write("router.crt", good);
    EXPECT_EQ(look(), absl::StrCat("info right again and in use: --tls-cert ", path("router.crt"),
                                   ", --tls-key ", path("router.key"), "\n"));
    EXPECT_FALSE(reload_.stale());
  }
  std::filesystem::remove(path("router.key"));
  look();
  EXPECT_THAT(look(),
              HasSubstr(absl::StrCat("--tls-key: ", path("router.key"), ": cannot be ope")));
  EXPECT_EQ(read(copy_), first_);
}

TEST_F(TlsReloadTest, ACertificateMayComeALookBeforeItsKey) {
  add_pair();
  const std::string certificate = read(path("worker.crt"));
  const std::string key = read(path("worker.key"));
  write("router.crt", certificate);
  EXPECT_THAT(look(), IsEmpty());
  EXPECT_EQ(read(copy_), first_);
  write("router.key", key);
  EXPECT_THAT(look(), IsEmpty());
  EXPECT_EQ(read(copy_), absl::StrCat(certificate, "\n", key));
  EXPECT_FALSE(reload_.stale());
}

TEST_F(TlsReloadTest, AKeyThatStaysTheWrongOneIsNamed) {
  add_pair();
  std::filesystem::copy_file(path("worker.key"), path("router.key"),
                             std::filesystem::copy_options::overwrite_existing);
  look();
  EXPECT_THAT(look(), HasSubstr(absl::StrCat("--tls-key: ", path("router.key"),
                                             " holds no key in PEM that fits the certificate")));
  EXPECT_EQ(read(copy_), first_);
}

TEST_F(TlsReloadTest, AnAuthorityIsTakenWholeAndByItself) {
  add_pair();
  const auto copy = reload_.add_ca({"--tls-client-ca", path("ca.crt")});
  ASSERT_TRUE(copy.ok()) << copy.status();
  const std::string ca = read(path("ca.crt"));
  EXPECT_EQ(read(*copy), ca);
  write("router.crt", "no certificate");
  const std::string two = ca + read(path("client.crt"));
  write("ca.crt", two.substr(0, two.size() - 50));
  look();
  EXPECT_THAT(look(), HasSubstr("--tls-client-ca: "));
  EXPECT_EQ(read(*copy), ca);
  write("ca.crt", two);
  EXPECT_THAT(look(), HasSubstr("right again and in use: --tls-client-ca "));
  EXPECT_EQ(read(*copy), two);
  EXPECT_TRUE(reload_.stale());  // the certificate
}

TEST(MemoryFileTest, AnOpenedContentStaysWhole) {
  MemoryFile file;
  ASSERT_TRUE(file.write("before").ok());
  const std::string path = file.path();
  std::ifstream opened(path);
  const auto time = std::filesystem::last_write_time(path);
  ASSERT_TRUE(file.write("after it").ok());
  std::string word;
  opened >> word;
  EXPECT_EQ(word, "before");
  EXPECT_EQ(file.path(), path);
  EXPECT_EQ(read(path), "after it");
  // By which gRPC sees that it has read halves.
  EXPECT_GE(std::filesystem::last_write_time(path) - time, std::chrono::seconds(1));
}

}  // namespace
}  // namespace lckv
