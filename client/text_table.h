// Columns for terminals.
#pragma once

#include <string>
#include <vector>

namespace lckv {

// Rows as wide as the first one, which is the heading; columns are padded to their widest entry and
// two spaces apart.
std::string format_table(const std::vector<std::vector<std::string>>& rows);

}  // namespace lckv
