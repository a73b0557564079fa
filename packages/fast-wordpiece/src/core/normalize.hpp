// BertNormalizer step by step, with where every character came from.
//
// This is the general path: it keeps offsets and canonical order, and it is what the fast path is
// held against. The steps and their order are those of Hugging Face `tokenizers`.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "buffer.hpp"
#include "linmaxmatch.hpp"
#include "model.hpp"
#include "properties.hpp"
#include "utf8.hpp"

namespace chapbook {

enum class OffsetUnit { kChar, kByte };

// A normalised character and the part of the text that it came from.
struct NormalizedChar {
  uint32_t cp;
  uint32_t start, end;
};

class NormalizedText {
 public:
  // Normalises `n` bytes of UTF-8. Offsets count from `base`, in characters or bytes.
  void assign(const NormalizerOptions& options, const uint8_t* p, size_t n, OffsetUnit unit = OffsetUnit::kByte,
              uint32_t base = 0) {
    chars_.clear();
    read(options, p, n, unit, base);
    if (options.strip_accents) strip_accents();
    if (options.lowercase) lower();
  }

  // Characters of the text that the last assign() read.
  uint32_t length() const { return length_; }
  const Buffer<NormalizedChar>& chars() const { return chars_; }

 private:
  // clean_text and the spaces around ideographs.
  void read(const NormalizerOptions& options, const uint8_t* p, size_t n, OffsetUnit unit, uint32_t base) {
    const uint8_t* const end = p + n;
    uint32_t at = base;
    while (p < end) {
      const Decoded d = decode(p, end);
      p += d.bytes;
      const uint32_t start = at;
      at += unit == OffsetUnit::kByte ? d.bytes : 1;
      uint32_t cp = d.cp;
      if (options.clean_text) {
        if (properties_.is(cp, Properties::kControl)) continue;
        if (properties_.is(cp, Properties::kSpaceClean)) cp = ' ';
      }
      if (properties_.is_ideograph(cp, options)) {
        chars_.push({' ', start, at});
        chars_.push({cp, start, at});
        chars_.push({' ', start, at});
      } else {
        chars_.push({cp, start, at});
      }
    }
    length_ = at - base;
  }

  // Canonical decomposition, canonical order, removal of nonspacing marks.
  void strip_accents() {
    parts_.clear();
    bool reorder = false;
    for (const NormalizedChar& c : chars_) {
      bool first = true;
      properties_.decompose(c.cp, [&](uint32_t cp) {
        const uint8_t ccc = properties_[cp].ccc;
        reorder |= ccc != 0;
        parts_.push({cp, ccc, first});
        first = false;
      });
    }
    if (reorder) order();
    // As in `tokenizers`, origins follow the place in the sequence, not the character: the n-th
    // character that stands for one of the text has the n-th origin, after any reordering.
    kept_.clear();
    size_t origin = 0;
    for (const Part& part : parts_) {
      origin += part.first;
      if (properties_.is(part.cp, Properties::kMark)) continue;
      const bool before_any = origin == 0;
      kept_.push({part.cp, before_any ? 0u : chars_[origin - 1].start, before_any ? 0u : chars_[origin - 1].end});
    }
    chars_.swap(kept_);
  }

  // Sorts each run of characters with a combining class by that class, keeping equals in order.
  void order() {
    for (size_t begin = 0; begin < parts_.size();) {
      if (parts_[begin].ccc == 0) {
        ++begin;
        continue;
      }
      size_t end = begin + 1;
      while (end < parts_.size() && parts_[end].ccc != 0) ++end;
      std::stable_sort(parts_.begin() + begin, parts_.begin() + end,
                       [](const Part& a, const Part& b) { return a.ccc < b.ccc; });
      begin = end;
    }
  }

  void lower() {
    kept_.clear();
    for (const NormalizedChar& c : chars_) {
      properties_.lower(c.cp, [&](uint32_t cp) { kept_.push({cp, c.start, c.end}); });
    }
    chars_.swap(kept_);
  }

  struct Part {
    uint32_t cp;
    uint8_t ccc;
    bool first;  // the first of what a character of the text decomposes to
  };

  const Properties& properties_ = Properties::get();
  Buffer<NormalizedChar> chars_, kept_;
  Buffer<Part> parts_;
  uint32_t length_ = 0;
};

// Calls `word(begin, end)` with the range of characters of each pre-token.
template <class Word>
void each_pre_token(const Buffer<NormalizedChar>& chars, size_t begin, size_t end, Word&& word) {
  const Properties& properties = Properties::get();
  size_t start = begin;
  for (size_t i = begin; i < end; ++i) {
    const bool space = properties.is(chars[i].cp, Properties::kWhiteSpace);
    if (!space && !properties.is(chars[i].cp, Properties::kPunctuation)) continue;
    if (i > start) word(start, i);
    if (!space) word(i, i + 1);
    start = i + 1;
  }
  if (end > start) word(start, end);
}

// Calls `word(text)` with each pre-token of the normalised text as UTF-8.
template <class Word>
void each_word(std::string_view text, const NormalizerOptions& options, NormalizedText& normalized, Word&& word) {
  std::string utf8;
  normalized.assign(options, reinterpret_cast<const uint8_t*>(text.data()), text.size());
  each_pre_token(normalized.chars(), 0, normalized.chars().size(), [&](size_t begin, size_t end) {
    utf8.clear();
    for (size_t i = begin; i < end; ++i) encode_utf8(normalized.chars()[i].cp, utf8);
    word(std::string_view(utf8));
  });
}

// Appends the ids of a stretch of text by way of its normalised characters.
inline void encode_normalized(const Model& model, NormalizedText& normalized, const uint8_t* p, size_t n,
                              Buffer<int32_t>& out) {
  normalized.assign(model.normalizer, p, n);
  Matcher matcher(model.trie, model.unknown, model.max_chars, out);
  const auto& chars = normalized.chars();
  each_pre_token(chars, 0, chars.size(), [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      const uint32_t entry = model.normal[chars[i].cp];
      if (CharEntry::kind(entry) == CharEntry::kSingle) {
        matcher.single(CharEntry::id(entry));
      } else {
        matcher.push(CharEntry::value(entry));
      }
    }
    matcher.finish();
  });
}

}  // namespace chapbook
