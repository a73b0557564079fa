// LinMaxMatch on bare words beside the older ways, and its trie spelled out: for the experiments of
// the paper and for the tests.
#include "bind.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <mutex>
#include <string>

#include "core/max_match.hpp"

using namespace nanobind::literals;
using namespace chapbook;
using namespace chapbook::bind;

template <>
inline constexpr int chapbook::bind::kNumpyType<double> = NPY_FLOAT64;

void bind_linmaxmatch(nb::module_& m);

namespace {

// Spelling out a large vocabulary takes longer than cutting a word, so the last one is kept.
std::shared_ptr<const Spelled> spelled(const std::shared_ptr<const Model>& model) {
  static std::mutex mutex;
  static std::weak_ptr<const Model> known;
  static std::shared_ptr<const Spelled> last;
  const std::lock_guard lock(mutex);
  if (known.lock() != model) {
    last = std::make_shared<const Spelled>(*model);
    known = model;
  }
  return last;
}

nb::tuple match_words(const SharedModel& shared, const std::vector<std::string>& words, const std::string& algorithm,
                      int repeats) {
  enum Way { kLinear, kSubstring, kRollback };
  const Way way = algorithm == "linmaxmatch" ? kLinear
                  : algorithm == "substring" ? kSubstring
                  : algorithm == "rollback"  ? kRollback
                                             : throw nb::value_error("the algorithms are linmaxmatch, substring and rollback");
  if (repeats < 1) throw nb::value_error("repeats must be at least 1");
  Buffer<int32_t> ids, again;
  Buffer<int64_t> bounds, transitions;
  Buffer<double> seconds;
  {
    const nb::gil_scoped_release release;
    const auto tables = spelled(shared.model);
    const TrieView& trie = shared.model->trie;
    bounds.push(0);
    for (const std::string& word : words) {
      int64_t steps = 0;
      auto timed = [&](auto&& match) {
        const auto start = std::chrono::steady_clock::now();
        for (int i = 0; i < repeats; ++i) {
          again.clear();
          match(again);
        }
        seconds.push(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / repeats);
      };
      switch (way) {
        case kLinear:
          timed([&](Buffer<int32_t>& out) { tables->linear(trie, word, out); });
          tables->linear(CountingTrie(trie, steps), word, ids);
          break;
        case kSubstring:
          timed([&](Buffer<int32_t>& out) { steps = tables->substring(word, out); });
          ids.append(again.data(), again.size());
          break;
        case kRollback:
          timed([&](Buffer<int32_t>& out) { steps = tables->rollback(word, out); });
          ids.append(again.data(), again.size());
          break;
      }
      bounds.push(static_cast<int64_t>(ids.size()));
      transitions.push(steps);
    }
  }
  return nb::make_tuple(to_array(std::move(ids)), to_array(std::move(bounds)), to_array(std::move(transitions)),
                        to_array(std::move(seconds)));
}

// Every node as (continues, text, failure pops, failure link), where the link is (continues, text)
// or None, and a text that continues a word lacks the mark.
nb::list trie(const SharedModel& shared) {
  const auto tables = spelled(shared.model);
  const TrieView& trie = shared.model->trie;
  auto name = [&](int32_t node) -> nb::object {
    if (node == kNull) return nb::none();
    const Spelled::Named named = tables->named(node);
    return nb::make_tuple(named.continues, named.text);
  };
  nb::list nodes;
  for (int32_t node = 0; node < static_cast<int32_t>(trie.size()); ++node) {
    if (node != TrieView::kRoot && node != trie.suffix_root() && trie.parent(node) == kNull) continue;
    nb::list pops;
    for (int32_t id : trie.pops(node)) pops.append(id);
    const Spelled::Named named = tables->named(node);
    nodes.append(nb::make_tuple(named.continues, named.text, pops, name(trie.fail(node))));
  }
  return nodes;
}

}  // namespace

void bind_linmaxmatch(nb::module_& m) {
  m.def("match_words", &match_words, "model"_a, "words"_a, "algorithm"_a, "repeats"_a = 1,
        "Cuts words as they are, for a model compiled with literal_marks=True: by linmaxmatch, substring or\n"
        "rollback. Returns ids, their bounds (words + 1), steps (see core/max_match.hpp) and seconds of each\n"
        "word, the mean of `repeats` runs.");
  m.def("trie", &trie, "model"_a,
        "Lists the nodes of a model compiled with literal_marks=True: (continues, text, failure pops,\n"
        "failure link), texts and links without the mark.");
}
