// Strings that are cut out of the text before the normaliser, or the pre-tokeniser, sees it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "buffer.hpp"
#include "normalize.hpp"
#include "properties.hpp"
#include "utf8.hpp"

namespace chapbook {

struct AddedToken {
  int32_t id;
  bool single_word, lstrip, rstrip;
  bool literal = false;  // matched, and then left as the text that it is
};

// A set of added tokens over text in units of `Char` (bytes of the raw text or characters of the
// normalised one), which finds the leftmost match and there the longest.
template <class Char>
class AddedTokenSet {
 public:
  using Text = std::vector<Char>;

  // Takes the tokens, each with its text in units of `Char`; those without text are never found.
  explicit AddedTokenSet(std::vector<std::pair<Text, AddedToken>> tokens = {}) : patterns_(std::move(tokens)) {
    std::erase_if(patterns_, [](const Pattern& pattern) { return pattern.first.empty(); });
    std::stable_sort(patterns_.begin(), patterns_.end(), [](const Pattern& a, const Pattern& b) {
      const size_t first = bucket(a.first[0]), second = bucket(b.first[0]);
      return first != second ? first < second : a.first.size() > b.first.size();
    });
    for (size_t i = patterns_.size(); i-- > 0;) {
      Bucket& held = buckets_[bucket(patterns_[i].first[0])];
      if (held.end == 0) held.end = i + 1;
      held.begin = i;
    }
    lone_first_ = lone_bucket();
  }
  bool empty() const { return patterns_.empty(); }

  // True where some token holds a unit for which the predicate is true.
  template <class Predicate>
  bool any_with(Predicate&& predicate) const {
    return std::any_of(patterns_.begin(), patterns_.end(), [&](const Pattern& pattern) {
      return std::any_of(pattern.first.begin(), pattern.first.end(), predicate);
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
      size_t start = at, stop = at + pattern->first.size();
      at = next(text, n, stop);
      const AddedToken& found = pattern->second;
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
  using Pattern = std::pair<Text, AddedToken>;

  // A range of patterns.
  struct Bucket {
    size_t begin = 0, end = 0;
    bool holds_any() const { return end > begin; }
  };

  static size_t bucket(Char c) { return static_cast<size_t>(c) & 0xFF; }

  // The byte that every pattern starts with, or -1.
  int lone_bucket() const {
    const auto holds_any = [](const Bucket& held) { return held.holds_any(); };
    if (std::count_if(buckets_.begin(), buckets_.end(), holds_any) != 1) return -1;
    return static_cast<int>(std::find_if(buckets_.begin(), buckets_.end(), holds_any) - buckets_.begin());
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
    while (at < n && !buckets_[bucket(text[at])].holds_any()) ++at;
    return at;
  }

  const Pattern* match(const Char* text, size_t n, size_t at) const {
    const Bucket held = buckets_[bucket(text[at])];
    for (size_t i = held.begin; i < held.end; ++i) {
      const Text& wanted = patterns_[i].first;
      if (wanted.size() <= n - at && std::equal(wanted.begin(), wanted.end(), text + at)) return &patterns_[i];
    }
    return nullptr;
  }

  std::vector<Pattern> patterns_;  // by the first unit, and there the longest first
  std::array<Bucket, 256> buckets_{};
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
