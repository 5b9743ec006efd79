#include "worker/sim/device_profile.h"

#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/model/bounded_file.h"

namespace lckv {
namespace {

using ::testing::HasSubstr;

constexpr char kFolder[] = "deploy/devices";

TEST(DeviceProfileTest, EveryDeviceThatIsShippedIsOne) {
  int num_devices = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kFolder)) {
    const auto device = read_device_profile(entry.path().stem().string(), kFolder);
    ASSERT_TRUE(device.ok()) << device.status();
    EXPECT_GE(device->memory_bytes, 1e9);
    // A product of matrices is what such devices are for.
    EXPECT_GT(device->bfloat16_flops_per_second, device->memory_bytes_per_second);
    ++num_devices;
  }
  EXPECT_GE(num_devices, 5);
}

TEST(DeviceProfileTest, APathIsReadAsItIs) {
  const auto device = read_device_profile(absl::StrCat(kFolder, "/l4.json"), "nowhere");
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_EQ(device->name, "NVIDIA L4");
}

TEST(DeviceProfileTest, AnUnknownDeviceIsAnsweredWithTheKnownOnes) {
  const absl::Status status = read_device_profile("b9000", kFolder).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("b9000"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("a100, h100, h200"));
}

TEST(DeviceProfileTest, AWrongNumberIsNamedWithItsFile) {
  const std::string good = *read_bounded_file(absl::StrCat(kFolder, "/h200.json"), 1 << 16);
  ASSERT_TRUE(parse_device_profile(good, "x.json").ok());
  for (const char* const wrong : {"0", "-1", "1.5", "\"0.8\"", "null", "1e300"}) {
    const std::string text = absl::StrReplaceAll(
        good, {{"\"memory_share\": 0.8", absl::StrCat("\"memory_share\": ", wrong)}});
    ASSERT_NE(text, good);
    const absl::Status status = parse_device_profile(text, "x.json").status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << wrong;
    EXPECT_THAT(std::string(status.message()), HasSubstr("x.json: memory_share")) << wrong;
  }
  for (const char* const text : {"", "[]", "{", "{}", "{\"name\": 1}"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(parse_device_profile(text, "x.json").status())) << text;
  }
}

}  // namespace
}  // namespace lckv
