// Strings that are cut out of the text before the normaliser, or the pre-tokeniser, sees it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "buffer.hpp"
#include "normalize.hpp"
#include "properties.hpp"
#include "utf8.hpp"

namespace chapbook {

struct AddedToken {
  std::string content;
  int32_t id;
  bool single_word, lstrip, rstrip;
  bool literal = false;  // matched, and then left as the text that it is
};

// A set of added tokens over text in units of `Char` (bytes of the raw text or characters of the
// normalised one), which finds the leftmost match and there the longest.
template <class Char>
class AddedTokenSet {
 public:
  using Text = std::basic_string<Char>;

  void add(Text text, const AddedToken& token) {
    if (text.empty()) return;
    first_[bucket(text[0])] = true;
    patterns_.push_back({std::move(text), token});
    std::stable_sort(patterns_.begin(), patterns_.end(),
                     [](const Pattern& a, const Pattern& b) { return a.text.size() > b.text.size(); });
    lone_first_ = lone_bucket();
  }
  bool empty() const { return patterns_.empty(); }

  // True where some token holds a unit for which the predicate is true.
  template <class Predicate>
  bool any_with(Predicate&& predicate) const {
    return std::any_of(patterns_.begin(), patterns_.end(), [&](const Pattern& pattern) {
      return std::any_of(pattern.text.begin(), pattern.text.end(), predicate);
    });
  }

  // Calls `gap(begin, end)` for the stretches between tokens and `token(id, begin, end)` for each
  // token, in order. `word(i)` tells whether the character that starts at, or ends before, unit i
  // is a letter, digit, mark or underscore; `space_before(i)` and `space_after(i)` extend over
  // white space.
  template <class Traits, class Gap, class Token>
  void split(const Char* text, size_t n, const Traits& traits, Gap&& gap, Token&& token) const {
    size_t done = 0;  // everything before is given out
    for (size_t at = next(text, n, 0); at < n;) {
      const Pattern* pattern = match(text, n, at);
      if (pattern == nullptr) {
        at = next(text, n, at + 1);
        continue;
      }
      size_t start = at, stop = at + pattern->text.size();
      at = next(text, n, stop);
      const AddedToken& found = pattern->token;
      if (found.literal) continue;
      if (found.single_word && (traits.word_before(start) || traits.word_after(stop))) continue;
      if (found.lstrip) start = std::max(traits.space_before(start), done);
      if (found.rstrip) stop = traits.space_after(stop);
      if (start > stop) continue;
      if (done < start) gap(done, start);
      if (start < stop) token(found.id, start, stop);  // else a token before it took all of it
      done = stop;
    }
    if (done < n) gap(done, n);
  }

 private:
  struct Pattern {
    Text text;
    AddedToken token;
  };

  static size_t bucket(Char c) { return static_cast<size_t>(c) & 0xFF; }

  // The byte that every pattern starts with, or -1.
  int lone_bucket() const {
    const auto count = std::count(first_.begin(), first_.end(), true);
    return count == 1 ? static_cast<int>(std::find(first_.begin(), first_.end(), true) - first_.begin()) : -1;
  }

  // Returns the first place from `at` on where a pattern can start.
  size_t next(const Char* text, size_t n, size_t at) const {
    if (at >= n) return n;
    if constexpr (sizeof(Char) == 1) {
      if (lone_first_ >= 0) {
        const void* found = std::memchr(text + at, lone_first_, n - at);
        return found == nullptr ? n : static_cast<size_t>(static_cast<const Char*>(found) - text);
      }
    }
    while (at < n && !first_[bucket(text[at])]) ++at;
    return at;
  }

  const Pattern* match(const Char* text, size_t n, size_t at) const {
    for (const Pattern& pattern : patterns_) {
      const size_t length = pattern.text.size();
      if (length <= n - at && std::equal(pattern.text.begin(), pattern.text.end(), text + at)) return &pattern;
    }
    return nullptr;
  }

  std::vector<Pattern> patterns_;  // the longest first
  std::array<bool, 256> first_{};
  int lone_first_ = -1;
};

// How AddedTokenSet looks around in raw UTF-8.
class RawTraits {
 public:
  RawTraits(const uint8_t* text, size_t n) : text_(text), n_(n) {}

  bool word_before(size_t i) const { return i > 0 && Properties::get().is(before(i), Properties::kWord); }
  bool word_after(size_t i) const {
    return i < n_ && Properties::get().is(decode(text_ + i, text_ + n_).cp, Properties::kWord);
  }
  size_t space_before(size_t i) const {
    while (i > 0 && Properties::get().is(before(i), Properties::kWhiteSpace)) i = start_before(i);
    return i;
  }
  size_t space_after(size_t i) const {
    while (i < n_) {
      const Decoded d = decode(text_ + i, text_ + n_);
      if (!Properties::get().is(d.cp, Properties::kWhiteSpace)) break;
      i += d.bytes;
    }
    return i;
  }

 private:
  size_t start_before(size_t i) const {
    --i;
    while (i > 0 && is_continuation(text_[i])) --i;
    return i;
  }
  uint32_t before(size_t i) const { return decode(text_ + start_before(i), text_ + i).cp; }

  const uint8_t* text_;
  size_t n_;
};

// The same in normalised characters.
class NormalTraits {
 public:
  NormalTraits(const char32_t* text, size_t n) : text_(text), n_(n) {}

  bool word_before(size_t i) const { return i > 0 && Properties::get().is(text_[i - 1], Properties::kWord); }
  bool word_after(size_t i) const { return i < n_ && Properties::get().is(text_[i], Properties::kWord); }
  size_t space_before(size_t i) const {
    while (i > 0 && Properties::get().is(text_[i - 1], Properties::kWhiteSpace)) --i;
    return i;
  }
  size_t space_after(size_t i) const {
    while (i < n_ && Properties::get().is(text_[i], Properties::kWhiteSpace)) ++i;
    return i;
  }

 private:
  const char32_t* text_;
  size_t n_;
};

}  // namespace chapbook
