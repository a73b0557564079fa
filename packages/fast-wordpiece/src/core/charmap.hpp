// One look-up per character of the raw text: normalised, classified, and as symbols of the trie.
//
// It folds clean_text, the spacing of ideographs, decomposition, the removal of marks, lower-casing
// and pre-tokenisation into one two-stage table made for a vocabulary and a normaliser.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <span>
#include <unordered_map>
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
  void count(uint32_t cp) { ++counts_[cp]; }

  void number() {
    std::vector<std::pair<uint32_t, uint32_t>> order;  // (count, code point)
    order.reserve(counts_.size());
    for (const auto& [cp, count] : counts_) order.emplace_back(count, cp);
    std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
      return a.first != b.first ? a.first > b.first : a.second < b.second;
    });
    for (const auto& [count, cp] : order) ids_.emplace(cp, static_cast<uint32_t>(ids_.size() + 1));
  }

  // Returns the symbol of a character, 0 where no piece holds it.
  uint32_t operator[](uint32_t cp) const {
    const auto found = ids_.find(cp);
    return found == ids_.end() ? 0 : found->second;
  }
  uint32_t size() const { return static_cast<uint32_t>(ids_.size()); }
  const std::unordered_map<uint32_t, uint32_t>& all() const { return ids_; }

 private:
  std::unordered_map<uint32_t, uint32_t> counts_;
  std::unordered_map<uint32_t, uint32_t> ids_;
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
    for (const auto& [cp, symbol] : symbols.all()) named[cp >> Properties::kPageBits] = true;
    pool.push_back(0);
    for (uint32_t page = 0; page < Properties::kPages; ++page) {
      const bool plain = !named[page] && properties_.page_is_plain(page);
      normal_pages.push_back(plain ? plain_page() : add_page(page, false));
      raw_pages.push_back(plain ? plain_page() : add_page(page, true));
    }
  }

 private:
  // All characters of a plain page are letters that no piece holds.
  uint16_t plain_page() {
    if (plain_ < 0) plain_ = intern(std::vector<uint32_t>(Properties::kPageSize, CharEntry::make(CharEntry::kLetter)));
    return static_cast<uint16_t>(plain_);
  }

  uint16_t add_page(uint32_t page, bool raw) {
    std::vector<uint32_t> made(Properties::kPageSize);
    for (uint32_t i = 0; i < Properties::kPageSize; ++i) {
      const uint32_t cp = page << Properties::kPageBits | i;
      made[i] = raw ? raw_entry(cp) : normal_entry(cp);
    }
    return intern(std::move(made));
  }

  uint16_t intern(std::vector<uint32_t> made) {
    const auto next = static_cast<uint16_t>(entries.size() >> Properties::kPageBits);
    const auto [found, fresh] = known_.emplace(std::move(made), next);
    if (fresh) entries.insert(entries.end(), found->first.begin(), found->first.end());
    return found->second;
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
    std::vector<uint32_t> parts;
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
  std::map<std::vector<uint32_t>, uint16_t> known_;
  int plain_ = -1;
};

}  // namespace chapbook
