// Trains the pieces of a WordPiece vocabulary by merging the most frequent pair, again and again.
//
// The procedure is that of Hugging Face's `WordPieceTrainer`, its choices and its quirks included:
//
// - Ids are given to the special tokens, then to the alphabet in code point order, then to the
//   continuations ("##a") as the words show them, then to merged pieces.
// - The most frequent pair is merged first; of equally frequent ones, the one with lower ids.
// - A pair's count is not cleared when it has been merged. It matters for a pair that comes back,
//   when another merge spells one of its pieces anew.
// - Words that get a pair by a merge wait in an entry of their own in the queue, beside the entry
//   of the words that had it before.
//
// It walks its words in the random order of a hash map, so that the ids of its continuations, and
// with them the choice between equally frequent pairs, differ from run to run. Here words come in
// byte order: the result is one that it can give, and always the same.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <queue>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "utf8.hpp"
#include "word_counts.hpp"

namespace chapbook {

struct TrainOptions {
  size_t vocab_size = 30000;
  uint64_t min_frequency = 2;
  std::vector<std::string> special_tokens;
  size_t limit_alphabet = 1000;
  std::u32string initial_alphabet;
  std::string mark = "##";
};

struct Trained {
  std::vector<std::string> pieces;  // by id
  size_t special_tokens = 0;        // how many of them are distinct
  size_t alphabet = 0;              // the single characters that follow, continuations included
};

inline constexpr size_t kStride = 4096;  // words between two looks at the clock

// Calls `poll(done)` at most about every 50 ms.
template <class Poll>
class Pacer {
 public:
  explicit Pacer(Poll& poll) : poll_(poll) {}
  void operator()(uint64_t done) {
    const auto now = std::chrono::steady_clock::now();
    if (now < next_) return;
    poll_(done);
    next_ = now + std::chrono::milliseconds(50);
  }

 private:
  Poll& poll_;
  std::chrono::steady_clock::time_point next_{};
};

// The pieces so far, both ways.
class Pieces {
 public:
  uint32_t id(const std::string& piece) {
    const auto [place, added] = ids_.try_emplace(piece, static_cast<uint32_t>(all_.size()));
    if (added) all_.push_back(piece);
    return place->second;
  }
  bool contains(const std::string& piece) const { return ids_.contains(piece); }
  const std::string& operator[](uint32_t id) const { return all_[id]; }
  size_t size() const { return all_.size(); }
  std::vector<std::string> take() { return std::move(all_); }

 private:
  std::unordered_map<std::string, uint32_t> ids_;
  std::vector<std::string> all_;
};

// Two neighbouring symbols, the first in the upper half, so that pairs compare as numbers.
using Pair = uint64_t;
inline Pair pair_of(uint32_t first, uint32_t second) {
  return static_cast<Pair>(first) << 32 | second;
}

// Pair to count, and to the words that have got it since it was queued last.
class PairTable {
 public:
  struct Entry {
    Pair pair = kFree;
    int64_t count = 0;
    std::vector<uint32_t> words;  // ascending
  };

  PairTable() : index_(1 << 12, kNone) {}

  // Returns the number of the pair's entry.
  uint32_t find(Pair pair) {
    size_t i = mix(pair) & (index_.size() - 1);
    for (; index_[i] != kNone; i = (i + 1) & (index_.size() - 1)) {
      if (entries_[index_[i]].pair == pair) return index_[i];
    }
    index_[i] = static_cast<uint32_t>(entries_.size());
    entries_.push_back({pair, 0, {}});
    if (entries_.size() * 2 > index_.size()) grow();
    return static_cast<uint32_t>(entries_.size() - 1);
  }

  Entry& operator[](uint32_t entry) { return entries_[entry]; }

 private:
  static constexpr Pair kFree = ~Pair{0};
  static constexpr uint32_t kNone = ~uint32_t{0};

  void grow() {
    index_.assign(index_.size() * 2, kNone);
    for (uint32_t e = 0; e < entries_.size(); ++e) {
      size_t i = mix(entries_[e].pair) & (index_.size() - 1);
      while (index_[i] != kNone) i = (i + 1) & (index_.size() - 1);
      index_[i] = e;
    }
  }

  std::vector<uint32_t> index_;
  std::vector<Entry> entries_;
};

// Every word as symbols, one word after the other; a merge shortens a word in its place.
struct SymbolWords {
  std::vector<uint32_t> symbols;
  std::vector<uint64_t> begins;
  std::vector<uint32_t> lengths;

  // Merges a pair wherever it occurs in a word, from the left, and calls `change(pair, by)` for
  // each neighbouring pair that goes (-1) or comes (+1).
  template <class Change>
  void merge(uint32_t word, Pair pair, uint32_t merged, Change&& change) {
    uint32_t* const at = symbols.data() + begins[word];
    const uint32_t length = lengths[word];
    const auto first = static_cast<uint32_t>(pair >> 32);
    const auto second = static_cast<uint32_t>(pair);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < length; ++i) {
      if (at[i] != first || i + 1 == length || at[i + 1] != second) {
        at[kept++] = at[i];
        continue;
      }
      if (kept > 0) {
        change(pair_of(at[kept - 1], first), -1);
        change(pair_of(at[kept - 1], merged), 1);
      }
      if (i + 2 < length) {
        change(pair_of(second, at[i + 2]), -1);
        change(pair_of(merged, at[i + 2]), 1);
      }
      at[kept++] = merged;
      ++i;
    }
    lengths[word] = kept;
  }
};

// Gives ids to the characters of the words: the most frequent `limit_alphabet`, those of the
// initial alphabet before all others; of equally frequent ones, the lower code points.
template <class Poll>
void add_alphabet(const WordList& words, const TrainOptions& options, Pieces& pieces,
                  Pacer<Poll>& pace) {
  std::vector<uint64_t> counts(0x110000);
  for (size_t w = 0; w < words.size(); ++w) {
    if (w % kStride == 0) pace(0);
    const std::string_view word = words.word(w);
    const auto* p = reinterpret_cast<const uint8_t*>(word.data());
    for (const auto* end = p + word.size(); p < end;) {
      const Decoded next = decode(p, end);
      counts[next.cp] += words.counts[w];
      p += next.bytes;
    }
  }
  for (const char32_t cp : options.initial_alphabet) counts[cp] = UINT64_MAX;
  std::vector<uint32_t> kept;
  for (uint32_t cp = 0; cp < counts.size(); ++cp) {
    if (counts[cp] != 0) kept.push_back(cp);
  }
  if (kept.size() > options.limit_alphabet) {
    std::stable_sort(kept.begin(), kept.end(),
                     [&](uint32_t a, uint32_t b) { return counts[a] > counts[b]; });
    kept.resize(options.limit_alphabet);
    std::sort(kept.begin(), kept.end());
  }
  for (const uint32_t cp : kept) {
    std::string piece;
    encode_utf8(cp, piece);
    pieces.id(piece);
  }
}

// Spells the words in symbols; characters outside of the alphabet vanish.
template <class Poll>
SymbolWords spell(const WordList& words, const std::string& mark, Pieces& pieces,
                  Pacer<Poll>& pace) {
  constexpr uint32_t kUnseen = ~uint32_t{0}, kDropped = kUnseen - 1;
  std::vector<uint32_t> ids[2] = {std::vector<uint32_t>(0x110000, kUnseen),
                                  std::vector<uint32_t>(0x110000, kUnseen)};
  auto look_up = [&](uint32_t cp, bool continues) {
    std::string piece;
    encode_utf8(cp, piece);
    if (!pieces.contains(piece)) return kDropped;
    return pieces.id(continues ? mark + piece : piece);
  };
  SymbolWords spelled;
  spelled.begins.reserve(words.size());
  spelled.lengths.reserve(words.size());
  for (size_t w = 0; w < words.size(); ++w) {
    if (w % kStride == 0) pace(0);
    const std::string_view word = words.word(w);
    spelled.begins.push_back(spelled.symbols.size());
    const auto* const begin = reinterpret_cast<const uint8_t*>(word.data());
    const auto* const end = begin + word.size();
    for (const auto* p = begin; p < end;) {
      const Decoded next = decode(p, end);
      uint32_t& id = ids[p != begin][next.cp];
      if (id == kUnseen) id = look_up(next.cp, p != begin);
      if (id != kDropped) spelled.symbols.push_back(id);
      p += next.bytes;
    }
    spelled.lengths.push_back(static_cast<uint32_t>(spelled.symbols.size() - spelled.begins[w]));
  }
  return spelled;
}

// Returns the vocabulary. `poll(pieces)` is called about every 50 ms and may throw.
template <class Poll>
Trained train_bpe(const WordList& words, const TrainOptions& options, Poll&& poll) {
  if (words.size() > UINT32_MAX) throw std::length_error("more than 4,294,967,295 distinct words");
  Pacer pace(poll);
  Pieces pieces;
  Trained trained;
  for (const std::string& token : options.special_tokens) pieces.id(token);
  trained.special_tokens = pieces.size();
  add_alphabet(words, options, pieces, pace);
  SymbolWords spelled = spell(words, options.mark, pieces, pace);
  trained.alphabet = pieces.size() - trained.special_tokens;

  struct Waiting {
    uint64_t count;
    Pair pair;
    uint32_t entry;  // of `pairs`
    uint32_t list;   // of `lists`; a lower number was queued earlier
    bool operator<(const Waiting& other) const {
      if (count != other.count) return count < other.count;
      return pair != other.pair ? pair > other.pair : list > other.list;
    }
  };
  PairTable pairs;
  std::priority_queue<Waiting> queue;
  std::vector<std::vector<uint32_t>> lists;
  std::vector<uint32_t> grown;  // entries that have got words since they were queued last
  auto note = [&](Pair pair, uint32_t word, int64_t by) {
    const uint32_t number = pairs.find(pair);
    PairTable::Entry& entry = pairs[number];
    entry.count += by;
    if (by < 0) return;
    if (entry.words.empty()) grown.push_back(number);
    if (entry.words.empty() || entry.words.back() != word) entry.words.push_back(word);
  };
  auto enqueue_grown = [&] {
    for (const uint32_t number : grown) {
      PairTable::Entry& entry = pairs[number];
      if (entry.count > 0) {
        queue.push({static_cast<uint64_t>(entry.count), entry.pair, number,
                    static_cast<uint32_t>(lists.size())});
        entry.words.shrink_to_fit();
        lists.push_back(std::move(entry.words));
      }
      entry.words = {};
    }
    grown.clear();
  };

  for (uint32_t w = 0; w < words.size(); ++w) {
    if (w % kStride == 0) pace(pieces.size());
    const uint32_t* at = spelled.symbols.data() + spelled.begins[w];
    for (uint32_t i = 1; i < spelled.lengths[w]; ++i) {
      note(pair_of(at[i - 1], at[i]), w, static_cast<int64_t>(words.counts[w]));
    }
  }
  enqueue_grown();

  while (pieces.size() < options.vocab_size && !queue.empty()) {
    pace(pieces.size());
    Waiting top = queue.top();
    queue.pop();
    const auto count = static_cast<uint64_t>(pairs[top.entry].count);
    if (top.count != count) {
      top.count = count;
      queue.push(top);
      continue;
    }
    if (count < 1 || count < options.min_frequency) break;

    std::string piece = pieces[static_cast<uint32_t>(top.pair >> 32)];
    std::string_view rest = pieces[static_cast<uint32_t>(top.pair)];
    if (rest.starts_with(options.mark)) rest.remove_prefix(options.mark.size());
    const uint32_t merged = pieces.id(piece.append(rest));

    const std::vector<uint32_t> where = std::move(lists[top.list]);
    for (size_t i = 0; i < where.size(); ++i) {
      if (i % kStride == kStride - 1) pace(pieces.size());
      const auto times = static_cast<int64_t>(words.counts[where[i]]);
      spelled.merge(where[i], top.pair, merged,
                    [&](Pair pair, int by) { note(pair, where[i], by * times); });
    }
    enqueue_grown();
  }
  trained.pieces = pieces.take();
  return trained;
}

}  // namespace chapbook
