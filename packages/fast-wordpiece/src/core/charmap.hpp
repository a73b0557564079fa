// One look-up per character of the raw text: normalised, classified, and as symbols of the trie.
//
// It folds clean_text, the spacing of ideographs, decomposition, the removal of marks, lower-casing
// and pre-tokenisation into one two-stage table made for a vocabulary and a normaliser.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <new>
#include <span>
#include <vector>

#include "properties.hpp"
#include "trie.hpp"

namespace chapbook {

// What a character of the raw text becomes; kind in the low three bits, the rest is its value.
struct CharEntry {
  enum Kind : uint32_t {
    kLetter = 0,     // value: symbol of the trie, 0 where no piece holds the character
    kDeleted = 1,
    kSpace = 2,      // a word ends here
    kSingle = 3,     // value: id of a token that is a word of its own
    kSeveral = 4,    // value: offset into the pool of a count and that many entries
    kReordered = 5,  // canonical order depends on the neighbours: normalise the whole word
  };
  static constexpr uint32_t make(Kind kind, uint32_t value = 0) { return value << 3 | kind; }
  static constexpr Kind kind(uint32_t entry) { return static_cast<Kind>(entry & 7); }
  static constexpr uint32_t value(uint32_t entry) { return entry >> 3; }
  // The id of a kSingle; kNoId (-1) keeps its sign.
  static constexpr int32_t id(uint32_t entry) { return static_cast<int32_t>(entry) >> 3; }
};

class CharMapView {
 public:
  CharMapView() = default;
  CharMapView(std::span<const uint16_t> pages, std::span<const uint32_t> entries,
              std::span<const uint32_t> pool)
      : pages_(pages.data()), entries_(entries.data()), pool_(pool.data()) {}

  uint32_t operator[](uint32_t cp) const {
    return entries_[static_cast<size_t>(pages_[cp >> Properties::kPageBits]) << Properties::kPageBits |
                    (cp & (Properties::kPageSize - 1))];
  }
  std::span<const uint32_t> several(uint32_t value) const { return {pool_ + value + 1, pool_[value]}; }

 private:
  const uint16_t* pages_ = nullptr;
  const uint32_t* entries_ = nullptr;
  const uint32_t* pool_ = nullptr;
};

// The symbols of a vocabulary: its distinct characters, the frequent ones first.
class Symbols {
 public:
  Symbols() : counts_(zeros()), ids_(zeros()) {}

  void count(uint32_t cp) {
    if (counts_[cp]++ == 0) chars_.push_back(cp);
  }

  void number() {
    std::sort(chars_.begin(), chars_.end(), [this](uint32_t a, uint32_t b) {
      return counts_[a] != counts_[b] ? counts_[a] > counts_[b] : a < b;
    });
    uint32_t id = 0;
    for (uint32_t cp : chars_) ids_[cp] = ++id;
  }

  // Returns the symbol of a character, 0 where no piece holds it.
  uint32_t operator[](uint32_t cp) const { return ids_[cp]; }
  uint32_t size() const { return static_cast<uint32_t>(chars_.size()); }
  const std::vector<uint32_t>& chars() const { return chars_; }

 private:
  struct Free {
    void operator()(uint32_t* memory) const { std::free(memory); }
  };
  using Numbers = std::unique_ptr<uint32_t[], Free>;

  // calloc leaves pages that are never written to the system.
  static Numbers zeros() {
    Numbers made(static_cast<uint32_t*>(std::calloc(0x110000, sizeof(uint32_t))));
    if (made == nullptr) throw std::bad_alloc();
    return made;
  }

  Numbers counts_, ids_;  // by code point
  std::vector<uint32_t> chars_;
};

// Builds two maps: `raw` from characters of the text, `normal` from characters that are normalised
// already (the pre-tokeniser's classes and the symbols alone).
class CharMapBuilder {
 public:
  std::vector<uint16_t> raw_pages, normal_pages;
  std::vector<uint32_t> entries, pool;

  CharMapBuilder(const Symbols& symbols, const TrieView& trie, int32_t unknown, uint32_t max_chars,
                 const NormalizerOptions& options, bool bare_words)
      : symbols_(symbols), trie_(trie), unknown_(unknown), max_chars_(max_chars), options_(options), bare_words_(bare_words) {
    std::vector<bool> named(Properties::kPages);
    for (uint32_t cp : symbols.chars()) named[cp >> Properties::kPageBits] = true;
    pool.push_back(0);
    for (uint32_t page = 0; page < Properties::kPages; ++page) {
      const bool uniform = !named[page] && properties_.is_uniform(page);
      normal_pages.push_back(add_page(page, uniform, [this](uint32_t cp) { return normal_entry(cp); }));
      raw_pages.push_back(add_page(page, uniform, [this](uint32_t cp) { return raw_entry(cp); }));
    }
  }

 private:
  using Page = std::array<uint32_t, Properties::kPageSize>;

  template <class Make>
  uint16_t add_page(uint32_t page, bool uniform, Make&& make) {
    const uint32_t first = page << Properties::kPageBits;
    if (uniform) {
      // Few values fill whole pages: each such page is made once.
      const uint32_t entry = make(first);
      const auto [found, fresh] = uniform_.emplace(entry, uint16_t{0});
      if (fresh) {
        Page made;
        made.fill(entry);
        found->second = append(made);
      }
      return found->second;
    }
    Page made;
    for (uint32_t i = 0; i < Properties::kPageSize; ++i) made[i] = make(first | i);
    return append(made);
  }

  uint16_t append(const Page& page) {
    const auto number = static_cast<uint16_t>(entries.size() >> Properties::kPageBits);
    entries.insert(entries.end(), page.begin(), page.end());
    return number;
  }

  uint32_t normal_entry(uint32_t cp) const {
    if (bare_words_) return CharEntry::make(CharEntry::kLetter, symbols_[cp]);
    if (properties_.is(cp, Properties::kWhiteSpace)) return CharEntry::make(CharEntry::kSpace);
    if (properties_.is(cp, Properties::kPunctuation)) return single(symbols_[cp]);
    return CharEntry::make(CharEntry::kLetter, symbols_[cp]);
  }

  uint32_t single(uint32_t symbol) const {
    int32_t id = unknown_;
    const int32_t node = max_chars_ > 0 ? trie_.child(TrieView::kRoot, symbol) : kNull;
    // A node whose failure pops are one piece and lead to the suffix root is that piece.
    if (node != kNull && trie_.fail(node) == trie_.suffix_root()) id = trie_.pops(node)[0];
    return CharEntry::make(CharEntry::kSingle, static_cast<uint32_t>(id));
  }

  uint32_t raw_entry(uint32_t cp) {
    if (options_.clean_text) {
      if (properties_.is(cp, Properties::kControl)) return CharEntry::make(CharEntry::kDeleted);
      if (properties_.is(cp, Properties::kSpaceClean)) return CharEntry::make(CharEntry::kSpace);
    }
    std::vector<uint32_t>& parts = parts_;
    parts.clear();
    bool reordered = false;
    auto take = [&](uint32_t c) {
      if (options_.strip_accents) {
        if (properties_.is(c, Properties::kMark)) return;
        reordered |= properties_[c].ccc != 0;
      }
      auto add = [&](uint32_t d) { parts.push_back(normal_entry(d)); };
      if (options_.lowercase) {
        properties_.lower(c, add);
      } else {
        add(c);
      }
    };
    if (options_.strip_accents) {
      properties_.decompose(cp, take);
    } else {
      take(cp);
    }
    if (reordered) return CharEntry::make(CharEntry::kReordered);
    if (properties_.is_ideograph(cp, options_)) {
      // Spaces on both sides: a lone letter is then a word of its own.
      if (parts.size() == 1 && CharEntry::kind(parts[0]) == CharEntry::kLetter) {
        return single(CharEntry::value(parts[0]));
      }
      parts.insert(parts.begin(), CharEntry::make(CharEntry::kSpace));
      parts.push_back(CharEntry::make(CharEntry::kSpace));
    }
    if (parts.empty()) return CharEntry::make(CharEntry::kDeleted);
    if (parts.size() == 1) return parts[0];
    const auto offset = static_cast<uint32_t>(pool.size());
    pool.push_back(static_cast<uint32_t>(parts.size()));
    pool.insert(pool.end(), parts.begin(), parts.end());
    return CharEntry::make(CharEntry::kSeveral, offset);
  }

 private:
  const Properties& properties_ = Properties::get();
  const Symbols& symbols_;
  const TrieView& trie_;
  const int32_t unknown_;
  const uint32_t max_chars_;
  const NormalizerOptions options_;
  const bool bare_words_;  // no character ends a word
  std::map<uint32_t, uint16_t> uniform_;  // the page that is filled with an entry
  std::vector<uint32_t> parts_;
};

}  // namespace chapbook
