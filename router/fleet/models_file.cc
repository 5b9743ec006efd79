#include "router/fleet/models_file.h"

#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "rpc/json_fields.h"

namespace lckv {
namespace {

constexpr size_t kMaxAddresses = 4096;

absl::StatusOr<ExpectedModel> parse_model(const nlohmann::json& entry, const std::string& path) {
  if (auto status = check_object(entry, path, {"name", "workers"}); !status.ok()) return status;
  ExpectedModel model;
  auto name = needed_string(entry, path, "name");
  if (!name.ok()) return name.status();
  model.name = *std::move(name);
  const auto workers = needed_list(entry, path, "workers");
  if (!workers.ok()) return workers.status();
  for (size_t i = 0; i < (*workers)->size(); ++i) {
    const nlohmann::json& address = (**workers)[i];
    if (!address.is_string() || !is_worker_address(address.get_ref<const std::string&>())) {
      return wrong_key(path, absl::StrCat("workers[", i, "]"),
                       absl::StrCat(address.dump(-1, ' ', true), " is no host:port"));
    }
    model.workers.push_back(address.get<std::string>());
  }
  return model;
}

}  // namespace

bool is_worker_address(absl::string_view address) {
  const size_t colon = address.rfind(':');
  uint32_t port = 0;
  return colon != absl::string_view::npos && colon > 0 &&
         absl::SimpleAtoi(address.substr(colon + 1), &port) && port >= 1 && port <= 65535;
}

absl::StatusOr<std::vector<ExpectedModel>> parse_models(absl::string_view text) {
  const auto json = parse_json(text);
  if (!json.ok()) return json.status();
  if (auto status = check_object(*json, "", {"models"}); !status.ok()) return status;
  const auto entries = needed_list(*json, "", "models");
  if (!entries.ok()) return entries.status();
  std::vector<ExpectedModel> models;
  std::set<std::string> names;
  std::set<std::string> addresses;
  for (size_t i = 0; i < (*entries)->size(); ++i) {
    const std::string path = absl::StrCat("models[", i, "]");
    auto model = parse_model((**entries)[i], path);
    if (!model.ok()) return model.status();
    if (!names.insert(model->name).second) {
      return wrong_key(path, "name", absl::StrCat("\"", model->name, "\" is here twice"));
    }
    for (size_t j = 0; j < model->workers.size(); ++j) {
      if (addresses.insert(model->workers[j]).second) continue;
      return wrong_key(path, absl::StrCat("workers[", j, "]"),
                       absl::StrCat(model->workers[j], " is here twice"));
    }
    models.push_back(*std::move(model));
  }
  if (addresses.size() > kMaxAddresses) {
    return wrong_key("", "models", absl::StrCat("more than ", kMaxAddresses, " workers"));
  }
  return models;
}

}  // namespace lckv
