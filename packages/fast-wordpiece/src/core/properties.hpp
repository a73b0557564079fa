// What each code point is to the BERT normaliser and pre-tokeniser, and what it turns into.
//
// The classes are those of Hugging Face `tokenizers`, probed, and not those of the current Unicode
// standard: see tools/probe_unicode.py.
#pragma once

#include <array>
#include <cstdint>
#include <span>
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

  // True where every code point of this page of 256 is without properties, so that a table built
  // over all code points can share one page for them.
  bool page_is_plain(uint32_t page) const { return pages_[page] == 0 && !is_hangul_page(page); }

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

  Properties() : entries_(kPageSize) {
    auto flag = [this](const auto& ranges, uint16_t bit) {
      for (const auto& range : ranges) {
        for (uint32_t cp = range.first; cp <= range.last; ++cp) own(cp).flags |= bit;
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
  }

  Entry& own(uint32_t cp) {
    uint16_t& page = pages_[cp >> kPageBits];
    if (page == 0) {
      page = static_cast<uint16_t>(entries_.size() >> kPageBits);
      entries_.resize(entries_.size() + kPageSize);
    }
    return entries_[static_cast<size_t>(page) << kPageBits | (cp & kPageMask)];
  }

  std::array<uint16_t, kPages> pages_{};
  std::vector<Entry> entries_;
};

}  // namespace chapbook
