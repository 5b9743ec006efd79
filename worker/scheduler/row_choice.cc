#include "worker/scheduler/row_choice.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"

namespace lckv {
namespace {

// Up to where a group's rows may be staged now.
struct StageLimit {
  int32_t end = 0;
  // All of them or none: two sequences holding half of theirs would wait for ever.
  bool whole = false;
};

class RowChooser {
 public:
  RowChooser(const Sequence& sequence, const RangeMap& map, const WalkRules& rules, StepRoom room)
      : sequence_(sequence),
        map_(map),
        rules_(rules),
        room_(std::move(room)),
        num_tokens_(std::min(sequence.known_end(), sequence.row_end())) {
    choice_.ordinary.assign(map.num_groups + 1, 0);
    choice_.groups.resize(map.num_groups);
    choice_.stage_end.resize(map.num_groups);
    choice_.lacks_staging.resize(map.num_groups);
  }

  RowChoice choose() {
    const int32_t num_groups = map_.num_groups;
    for (int32_t g = 0; g < num_groups; ++g) choice_.stage_end[g] = staged_end(g);
    for (int32_t k = num_groups; k > 0; --k) run_ordinary(k, sequence_.groups[k - 1].settled);
    if (num_groups == 0) run_ordinary(0, num_tokens_);
    for (int32_t g = 0; g < num_groups; ++g) {
      if (g == 0) run_lowest();
      const int32_t certain = walk(g);
      run_ordinary(g + 1, sequence_.groups[g].settled + certain);
    }
    for (int32_t g = 0; g < num_groups; ++g) choice_.stage_end[g] = hold_end(g);
    return std::move(choice_);
  }

 private:
  bool token_by_token(int32_t position) const {
    if (!sequence_.in_prompt(position)) return rules_.chunk == 0 || rules_.official_decode;
    return sequence_.iterated() && !walks_passes(position);
  }
  // The official code runs prompts no longer than its pass count as it decodes.
  bool walks_passes(int32_t position) const {
    return sequence_.iterated() && sequence_.in_prompt(position) &&
           !(rules_.official_decode && sequence_.prompt_size() <= map_.num_passes);
  }

  StageLimit stage_limit(int32_t g) const {
    const int32_t first = sequence_.groups[g].settled;
    if (walks_passes(first)) return {.end = sequence_.prompt_size(), .whole = true};
    if (token_by_token(first)) return {.end = first + 1};
    if (rules_.chunk > 0) {
      return {.end = chunk_end(sequence_, rules_.chunk, first),
              .whole = sequence_.in_prompt(first)};
    }
    const int32_t end = sequence_.prompt_size();
    return {.end = g == 0 ? std::min(end, first + rules_.lookahead) : end};
  }

  // The limit, as far as there are staging rows.
  int32_t staged_end(int32_t g) const {
    const StageLimit limit = stage_limit(g);
    const int32_t held = sequence_.groups[g].staged_end();
    if (held >= limit.end) return limit.end;
    if (limit.end - held <= room_.staging_rows[g]) return limit.end;
    return limit.whole ? held : held + room_.staging_rows[g];
  }

  // Rows that must be staged all together take their places with the first of them.
  int32_t hold_end(int32_t g) const {
    const bool whole = stage_limit(g).whole && choice_.ordinary[g] > 0;
    const int32_t end = whole ? choice_.stage_end[g] : ordinary_end(g);
    return std::max(end, sequence_.groups[g].staged_end());
  }

  int32_t affordable(int32_t range, int32_t num_rows) const {
    num_rows = std::min(num_rows, room_.range_rows[range]);
    const int32_t layers = map_.layers[range];
    if (layers > 0) num_rows = std::min<int64_t>(num_rows, room_.row_layers / layers);
    return std::max(num_rows, 0);
  }

  void spend(int32_t range, int32_t num_rows) {
    const int64_t row_layers = static_cast<int64_t>(num_rows) * map_.layers[range];
    LCKV_CHECK(row_layers <= room_.row_layers && num_rows <= room_.range_rows[range]);
    room_.row_layers -= row_layers;
    room_.range_rows[range] -= num_rows;
    choice_.row_layers += row_layers;
  }

  int32_t ordinary_end(int32_t k) const { return sequence_.ordinary[k] + choice_.ordinary[k]; }

  // Runs ordinary[k] up to position `end`, as far as the group above has staging rows for them.
  void run_ordinary(int32_t k, int32_t end) {
    if (k < map_.num_groups) {
      const StageLimit limit = stage_limit(k);
      end = std::min(end, limit.end);
      const bool lacks = limit.whole && end > choice_.stage_end[k];
      choice_.lacks_staging[k] = choice_.lacks_staging[k] || lacks;
      end = std::min(end, choice_.stage_end[k]);
    }
    const int32_t range = RangeMap::ordinary(k);
    const int32_t num_rows = affordable(range, end - ordinary_end(k));
    spend(range, num_rows);
    choice_.ordinary[k] += num_rows;
  }

  // The lowest group's rows: no more than this step's walk takes with them, unless they may run
  // ahead.
  void run_lowest() {
    const StageLimit limit = stage_limit(0);
    int32_t end = num_tokens_;
    if (!limit.whole) {
      const int32_t first = sequence_.groups[0].settled;
      const int64_t have = std::max(0, sequence_.ordinary[0] - first);
      const int64_t walk_layers = map_.layers[RangeMap::group(0)];
      const int64_t layers = walk_layers + map_.layers[RangeMap::ordinary(0)];
      // Rows that can be both run and walked within the budget.
      const int64_t spare = std::max<int64_t>(0, room_.row_layers - have * walk_layers);
      const int64_t rows =
          std::min<int64_t>(have + spare / layers, room_.range_rows[RangeMap::group(0)]);
      end = std::min<int64_t>(end, first + rows);
    }
    run_ordinary(0, end);
  }

  // Chooses the walk of groups[g]; returns how many rows it settles for certain.
  int32_t walk(int32_t g) {
    const GroupProgress& group = sequence_.groups[g];
    WalkChoice& walk = choice_.groups[g];
    const int32_t range = RangeMap::group(g);
    const int32_t staged = ordinary_end(g);
    const StageLimit limit = stage_limit(g);
    walk.official_decode = rules_.official_decode && token_by_token(group.settled);
    if (walks_passes(group.settled)) {
      if (staged < limit.end) return 0;
      walk.num_rows = affordable(range, limit.end - group.pass_position);
      const bool ends = group.pass_position + walk.num_rows == limit.end;
      walk.end = group.pass == map_.num_passes ? WalkEnd::kCommit
                 : ends                        ? WalkEnd::kPassEnd
                                               : WalkEnd::kPass;
    } else if (limit.whole) {
      if (staged < limit.end) return 0;
      const int32_t window = limit.end - group.settled;
      walk.num_rows = affordable(range, window) == window ? window : 0;
      choice_.lacks_budget = choice_.lacks_budget || walk.num_rows == 0;
    } else {
      int32_t window = std::min(staged, limit.end) - group.settled;
      if (rules_.chunk == 0) window = std::min(window, rules_.lookahead);
      walk.num_rows = affordable(range, window);
    }
    spend(range, walk.num_rows);
    return walk.num_certain();
  }

  const Sequence& sequence_;
  const RangeMap& map_;
  const WalkRules& rules_;
  StepRoom room_;
  const int32_t num_tokens_;
  RowChoice choice_;
};

}  // namespace

int32_t WalkChoice::num_certain() const {
  if (end == WalkEnd::kCommit) return num_rows;
  return end == WalkEnd::kSettle ? std::min(num_rows, 1) : 0;
}

bool RowChoice::empty() const {
  return std::all_of(ordinary.begin(), ordinary.end(), [](int32_t rows) { return rows == 0; }) &&
         std::all_of(groups.begin(), groups.end(),
                     [](const WalkChoice& walk) { return walk.num_rows == 0; });
}

RowChoice choose_rows(const Sequence& sequence, const RangeMap& map, const WalkRules& rules,
                      StepRoom room) {
  return RowChooser(sequence, map, rules, std::move(room)).choose();
}

int32_t chunk_end(const Sequence& sequence, int32_t chunk, int32_t position) {
  LCKV_CHECK(chunk > 0);
  const int32_t end = (position / chunk + 1) * chunk;
  if (sequence.in_prompt(position)) return std::min(end, sequence.prompt_size());
  return std::min(end, std::min(sequence.known_end(), sequence.row_end()));
}

}  // namespace lckv
