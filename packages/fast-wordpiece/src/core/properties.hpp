// What each code point is to the BERT normaliser and pre-tokeniser, and what it turns into.
//
// The classes are those of Hugging Face `tokenizers`, probed, and not those of the current Unicode
// standard: see tools/probe_unicode.py.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "unicode_tables.hpp"

namespace chapbook {

// The options of BertNormalizer.
struct NormalizerOptions {
  bool clean_text = true;
  bool handle_chinese_chars = true;
  bool strip_accents = true;
  bool lowercase = true;
  bool tf_text = false;  // The ideograph blocks of Google's BERT and of TF Text.
};

class Properties {
 public:
  enum Flag : uint16_t {
    kControl = 1,      // deleted by clean_text
    kSpaceClean = 2,   // turned into a plain space by clean_text
    kWhiteSpace = 4,   // the pre-tokeniser splits here
    kPunctuation = 8,  // the pre-tokeniser isolates it
    kMark = 16,        // deleted by strip_accents
    kCjkHf = 32,
    kCjkTfText = 64,
    kWord = 128,  // letter, digit, mark or underscore: what `\w` matches
  };

  struct Entry {
    uint16_t flags = 0;
    uint8_t ccc = 0;         // canonical combining class
    uint16_t decompose = 0;  // index into unicode::kDecompose plus one, or 0
    uint16_t lower = 0;      // the same into unicode::kLower

    bool operator==(const Entry&) const = default;
  };

  static const Properties& get() {
    static const Properties properties;
    return properties;
  }

  const Entry& operator[](uint32_t cp) const {
    return entries_[static_cast<size_t>(pages_[cp >> kPageBits]) << kPageBits | (cp & kPageMask)];
  }

  bool is(uint32_t cp, uint16_t flags) const { return ((*this)[cp].flags & flags) != 0; }

  bool is_ideograph(uint32_t cp, const NormalizerOptions& options) const {
    return options.handle_chinese_chars && is(cp, options.tf_text ? kCjkTfText : kCjkHf);
  }

  // Calls `emit(cp)` for each code point of the canonical decomposition, fully applied.
  template <class Emit>
  void decompose(uint32_t cp, Emit&& emit) const {
    if (cp - kHangulFirst < kHangulCount) {  // The standard's arithmetic, section 3.12.
      const uint32_t s = cp - kHangulFirst;
      emit(0x1100 + s / 588);
      emit(0x1161 + s % 588 / 28);
      if (s % 28 != 0) emit(0x11A7 + s % 28);
      return;
    }
    const uint16_t index = (*this)[cp].decompose;
    if (index == 0) {
      emit(cp);
      return;
    }
    const auto& mapping = unicode::kDecompose[index - 1];
    for (uint32_t i = 0; i < mapping.length; ++i) emit(unicode::kDecomposePool[mapping.offset + i]);
  }

  // Calls `emit(cp)` for each code point of the lower case, which does not depend on context.
  template <class Emit>
  void lower(uint32_t cp, Emit&& emit) const {
    const uint16_t index = (*this)[cp].lower;
    if (index == 0) {
      emit(cp);
      return;
    }
    const auto& mapping = unicode::kLower[index - 1];
    for (uint32_t i = 0; i < mapping.length; ++i) emit(unicode::kLowerPool[mapping.offset + i]);
  }

  // True where all code points of this page of 256 have the same properties and map to themselves, so
  // that a table over all code points need look at one of them.
  bool is_uniform(uint32_t page) const { return uniform_[page]; }

  static constexpr uint32_t kPageBits = 8;
  static constexpr uint32_t kPageSize = 1u << kPageBits;
  static constexpr uint32_t kPages = 0x110000 >> kPageBits;

 private:
  static constexpr uint32_t kPageMask = kPageSize - 1;
  static constexpr uint32_t kHangulFirst = 0xAC00;
  static constexpr uint32_t kHangulCount = 11172;

  static bool is_hangul_page(uint32_t page) {
    return page >= kHangulFirst >> kPageBits && page <= (kHangulFirst + kHangulCount - 1) >> kPageBits;
  }

  Properties() : entries_(kPageSize), shared_{true} {
    // Whole pages that get the same flags stay one page, which keeps the table small.
    auto flag = [this](const auto& ranges, uint16_t bit) {
      std::map<uint16_t, uint16_t> flagged;  // pages, and what they become with this flag
      for (const auto& range : ranges) {
        for (uint32_t cp = range.first; cp <= range.last;) {
          if (cp % kPageSize != 0 || range.last - cp < kPageSize - 1) {
            own(cp++).flags |= bit;
            continue;
          }
          uint16_t& page = pages_[cp >> kPageBits];
          const auto [found, fresh] = flagged.emplace(page, uint16_t{0});
          if (fresh) {
            found->second = copy(page, true);
            Entry* const first = &entries_[static_cast<size_t>(found->second) << kPageBits];
            for (uint32_t i = 0; i < kPageSize; ++i) first[i].flags |= bit;
          }
          page = found->second;
          cp += kPageSize;
        }
      }
    };
    flag(unicode::kControl, kControl);
    flag(unicode::kSpaceClean, kSpaceClean);
    flag(unicode::kWhiteSpace, kWhiteSpace);
    flag(unicode::kPunctuation, kPunctuation);
    flag(unicode::kMark, kMark);
    flag(unicode::kCjkHf, kCjkHf);
    flag(unicode::kCjkTfText, kCjkTfText);
    flag(unicode::kWord, kWord);
    for (const auto& range : unicode::kCcc) {
      for (uint32_t cp = range.first; cp <= range.last; ++cp) own(cp).ccc = range.ccc;
    }
    uint16_t index = 0;
    for (const auto& mapping : unicode::kDecompose) own(mapping.cp).decompose = ++index;
    index = 0;
    for (const auto& mapping : unicode::kLower) own(mapping.cp).lower = ++index;
    for (uint32_t page = 0; page < kPages; ++page) {
      const Entry* const first = &entries_[static_cast<size_t>(pages_[page]) << kPageBits];
      uniform_[page] = !is_hangul_page(page) && first->decompose == 0 && first->lower == 0 &&
                       std::all_of(first, first + kPageSize, [&](const Entry& entry) { return entry == *first; });
    }
  }

  // Returns the entry of a code point on a page that no other code points share.
  Entry& own(uint32_t cp) {
    uint16_t& page = pages_[cp >> kPageBits];
    if (shared_[page]) page = copy(page, false);
    return entries_[static_cast<size_t>(page) << kPageBits | (cp & kPageMask)];
  }

  uint16_t copy(uint16_t page, bool shared) {
    const auto made = static_cast<uint16_t>(shared_.size());
    shared_.push_back(shared);
    entries_.resize(entries_.size() + kPageSize);
    const auto from = entries_.begin() + (static_cast<std::ptrdiff_t>(page) << kPageBits);
    std::copy(from, from + kPageSize, entries_.end() - kPageSize);
    return made;
  }

  std::array<uint16_t, kPages> pages_{};
  std::array<bool, kPages> uniform_{};
  std::vector<Entry> entries_;
  std::vector<bool> shared_;  // whether several pages of code points lie there
};

}  // namespace chapbook
