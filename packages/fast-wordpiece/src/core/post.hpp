// From the tokens of one text, or of a pair, to rows: truncation, windows of overflow, and the
// special tokens of the template.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <vector>

#include "encoder.hpp"

namespace chapbook {

struct Template {
  enum Kind : uint8_t { kSpecial, kFirst, kSecond };
  struct Piece {
    Kind kind;
    int32_t id;  // of a kSpecial
  };
  std::vector<Piece> single, pair;

  const std::vector<Piece>& of(bool is_pair) const { return is_pair ? pair : single; }
  // True where the second text of a pair comes before the first.
  bool second_leads() const {
    const auto text = std::find_if(pair.begin(), pair.end(), [](const Piece& p) { return p.kind != kSpecial; });
    return text != pair.end() && text->kind == kSecond;
  }
  size_t specials(bool is_pair) const {
    const auto& pieces = of(is_pair);
    return static_cast<size_t>(
        std::count_if(pieces.begin(), pieces.end(), [](const Piece& p) { return p.kind == kSpecial; }));
  }
};

struct Truncation {
  enum Strategy : uint8_t { kLongestFirst, kOnlyFirst, kOnlySecond };
  bool enabled = false;
  bool overflow = false;  // keep what is cut off, as further windows
  bool left = false;      // tokens are lost on the left
  Strategy strategy = kLongestFirst;
  size_t max_length = 0;
  size_t stride = 0;
};

// What the rows of a batch lie in. A row is one window of one sample.
struct Rows {
  Tokens tokens;            // words are -1 at special tokens
  Buffer<int64_t> ends;     // where each row ends in tokens
  Buffer<int32_t> samples;  // the sample of each row
  Buffer<int32_t> firsts, seconds;        // tokens of the first and second sequence in each row
  Buffer<uint8_t> overflow;  // bit 0, 1: the first, second sequence is a window of overflow
  Encoder::Position before;  // of a piece of a text: what its offsets and words do not count yet
};

// A sample that cannot be truncated as asked.
struct TruncationError : std::exception {
  enum Kind { kTooShort, kNoSecond, kFirstTooShort, kSecondTooShort, kStride };
  TruncationError(Kind kind, int32_t sample, size_t a, size_t b) : kind(kind), sample(sample), a(a), b(b) {}
  const char* what() const noexcept override { return "cannot truncate"; }
  Kind kind;
  int32_t sample;
  size_t a, b;
};

struct Range {
  size_t begin, end;
  size_t size() const { return end - begin; }
};

// Lengths of the two sequences after truncation to `room` tokens in all.
struct Lengths {
  size_t first, second;
};

inline Lengths shortened(size_t first, size_t second, size_t room, Truncation::Strategy strategy) {
  if (first + second <= room) return {first, second};
  const size_t excess = first + second - room;
  if (strategy == Truncation::kOnlyFirst) return {first - excess, second};
  if (strategy == Truncation::kOnlySecond) return {first, second - excess};
  size_t shorter = std::min(first, second), longer;
  longer = shorter > room ? shorter : std::max(shorter, room - shorter);
  if (shorter + longer > room) {
    shorter = room / 2;
    longer = shorter + room % 2;
  }
  return first > second ? Lengths{longer, shorter} : Lengths{shorter, longer};
}

// The windows of `length` tokens over a sequence of `size`, the one that is kept first.
inline std::vector<Range> windows(size_t size, size_t length, size_t stride, bool left) {
  if (length >= size) return {{0, size}};
  if (length == 0) return {{0, 0}, {0, size}};
  std::vector<Range> all;
  const size_t step = length - stride;
  for (size_t i = 0;; i += step) {
    if (!left) {
      all.push_back({i, std::min(i + length, size)});
      if (all.back().end == size) break;
    } else {
      const size_t end = size - i;
      all.push_back({end < length ? 0 : end - length, end});
      if (all.back().begin == 0) break;
    }
  }
  return all;
}

// Writes the rows of one sample.
class Assembler {
 public:
  Assembler(const std::vector<Template::Piece>& pieces, const Wanted& wanted) : pieces_(pieces), wanted_(wanted) {}

  // Appends a row made of ranges of the two texts' tokens.
  void row(const Tokens& first, Range a, const Tokens* second, Range b, uint8_t overflow, int32_t sample,
           Rows& out) const {
    for (const Template::Piece& piece : pieces_) {
      switch (piece.kind) {
        case Template::kSpecial:
          special(out.tokens, piece.id, wanted_);
          break;
        case Template::kFirst: copy(first, a, out.tokens); break;
        case Template::kSecond:
          if (second != nullptr) copy(*second, b, out.tokens);
          break;
      }
    }
    end_row(out, sample, a.size(), second == nullptr ? 0 : b.size(), overflow);
  }

  static void special(Tokens& out, int32_t id, const Wanted& wanted) {
    out.ids.push(id);
    if (wanted.offsets) out.offsets.push({0, 0});
    if (wanted.offsets) out.words.push(-1);
  }

  static void end_row(Rows& out, int32_t sample, size_t first, size_t second, uint8_t overflow) {
    out.ends.push(static_cast<int64_t>(out.tokens.ids.size()));
    out.samples.push(sample);
    out.firsts.push(static_cast<int32_t>(first));
    out.seconds.push(static_cast<int32_t>(second));
    out.overflow.push(overflow);
  }

 private:
  void copy(const Tokens& from, Range range, Tokens& to) const {
    to.ids.append(from.ids.data() + range.begin, range.size());
    if (wanted_.offsets) to.offsets.append(from.offsets.data() + range.begin, range.size());
    if (wanted_.offsets) to.words.append(from.words.data() + range.begin, range.size());
  }

  const std::vector<Template::Piece>& pieces_;
  const Wanted wanted_;
};

// Truncates the tokens of one sample and writes its rows, the one that is kept first. Windows of a
// pair are combined in every way, in the order of `tokenizers`.
inline void write_rows(const Tokens& first, const Tokens* second, const Template& plan, bool special,
                       const Truncation& truncation, const Wanted& wanted, int32_t sample, Rows& out) {
  static const std::vector<Template::Piece> kBareSingle{{Template::kFirst, 0}};
  static const std::vector<Template::Piece> kBarePair{{Template::kFirst, 0}, {Template::kSecond, 0}};
  static const std::vector<Template::Piece> kBareSwapped{kBarePair[1], kBarePair[0]};
  const bool is_pair = second != nullptr;
  const bool swapped = is_pair && plan.second_leads();
  const auto& pieces = special ? plan.of(is_pair) : !is_pair ? kBareSingle : swapped ? kBareSwapped : kBarePair;
  const Assembler assembler(pieces, wanted);
  const size_t n1 = first.ids.size(), n2 = is_pair ? second->ids.size() : 0;
  if (!truncation.enabled) {
    assembler.row(first, {0, n1}, second, {0, n2}, 0, sample, out);
    return;
  }
  const size_t added = special ? plan.specials(is_pair) : 0;
  if (truncation.max_length < added) throw TruncationError(TruncationError::kTooShort, sample, truncation.max_length, added);
  const size_t room = truncation.max_length - added;
  Lengths lengths{n1, n2};
  if (room == 0) {
    lengths = {0, 0};
  } else if (n1 + n2 > room) {
    const size_t excess = n1 + n2 - room;
    if (truncation.strategy == Truncation::kOnlySecond && !is_pair) {
      throw TruncationError(TruncationError::kNoSecond, sample, 0, 0);
    }
    if (truncation.strategy == Truncation::kOnlyFirst && n1 <= excess) {
      throw TruncationError(TruncationError::kFirstTooShort, sample, excess, n1);
    }
    if (truncation.strategy == Truncation::kOnlySecond && n2 <= excess) {
      throw TruncationError(TruncationError::kSecondTooShort, sample, excess, n2);
    }
    lengths = is_pair ? shortened(n1, n2, room, truncation.strategy) : Lengths{room, 0};
  }
  auto cut = [&](size_t size, size_t length) {
    if (length < size && truncation.stride > 0 && truncation.stride >= length) {
      throw TruncationError(TruncationError::kStride, sample, truncation.stride, length);
    }
    return windows(size, length, truncation.stride, truncation.left);
  };
  const std::vector<Range> as = cut(n1, lengths.first), bs = cut(n2, lengths.second);
  auto row = [&](size_t i, size_t j) {
    const auto overflow = static_cast<uint8_t>((i > 0 ? 1 : 0) | (j > 0 ? 2 : 0));
    assembler.row(first, as[i], second, bs[j], overflow, sample, out);
  };
  row(0, 0);
  if (!truncation.overflow) return;
  // The text that the template puts first counts slowly, from its second window on to its kept one.
  const size_t slow = swapped ? bs.size() : as.size(), quick = swapped ? as.size() : bs.size();
  for (size_t i = 1; i <= slow; ++i) {
    for (size_t j = i == slow ? 1 : 0; j < quick; ++j) swapped ? row(j, i % slow) : row(i % slow, j);
  }
}

}  // namespace chapbook
