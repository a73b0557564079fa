// One word at a time by LinMaxMatch and by the two older ways that it is measured against.
//
// All three read the word as UTF-8, as it is, and cut it with the same vocabulary. What a step is:
// an edge of the trie that is taken or a failure link (LinMaxMatch), an edge that is looked for
// (roll-back), a look-up in a hash table (substrings).
//
// Reference: Song et al., "Fast WordPiece Tokenization", EMNLP 2021, section 3.1.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "buffer.hpp"
#include "linmaxmatch.hpp"
#include "model.hpp"
#include "utf8.hpp"

namespace chapbook {

// A trie that counts what a Matcher does with it.
class CountingTrie {
 public:
  CountingTrie(const TrieView& trie, int64_t& steps) : trie_(trie), steps_(steps) {}

  int32_t suffix_root() const { return trie_.suffix_root(); }
  int32_t child(int32_t node, uint32_t symbol) const {
    const int32_t next = trie_.child(node, symbol);
    steps_ += next != kNull;
    return next;
  }
  int32_t fail(int32_t node) const {
    ++steps_;
    return trie_.fail(node);
  }
  std::span<const int32_t> pops(int32_t node) const { return trie_.pops(node); }

 private:
  TrieView trie_;
  int64_t& steps_;
};

// The nodes of a model's tries spelled out, and the tables of the substring way.
class Spelled {
 public:
  struct Named {
    bool continues;  // in the trie of the pieces that continue a word
    std::string text;
  };

  explicit Spelled(const Model& model) : model_(model) {
    if (!model.literal_marks) throw std::invalid_argument("the model must be compiled with literal_marks=True");
    for (uint32_t cp = 0; cp < 0x110000; ++cp) {
      const uint32_t symbol = CharEntry::value(model.normal[cp]);
      if (symbol == 0) continue;
      if (symbol >= chars_.size()) chars_.resize(symbol + 1);
      chars_[symbol] = cp;
    }
    const TrieView& trie = model.trie;
    for (int32_t node = 0; node < static_cast<int32_t>(trie.size()); ++node) {
      if (!trie.is_piece(node)) continue;
      Named name = named(node);
      if (trie.suffix_root() == TrieView::kRoot) continuing_.emplace(name.text, trie.pops(node)[0]);
      (name.continues ? continuing_ : initial_).emplace(std::move(name.text), trie.pops(node)[0]);
    }
  }

  // Returns what a node stands for, without the mark.
  Named named(int32_t node) const {
    std::u32string text;
    for (int32_t parent; (parent = model_.trie.parent(node)) != kNull; node = parent) {
      text.insert(text.begin(), chars_[model_.trie.symbol(node)]);
    }
    Named out{node != TrieView::kRoot, {}};
    for (char32_t c : text) encode_utf8(c, out.text);
    return out;
  }

  // MaxMatch by looking up every substring, from the longest to the shortest.
  int64_t substring(std::string_view word, Buffer<int32_t>& out) const {
    const size_t from = out.size();
    int64_t steps = 0;
    if (too_long(word)) return unknown(from, out), steps;
    for (size_t start = 0; start < word.size();) {
      const auto& table = start == 0 ? initial_ : continuing_;
      size_t end = word.size();
      for (;; end = before(word, end)) {
        if (end == start) return unknown(from, out), steps;
        ++steps;
        const auto found = table.find(word.substr(start, end - start));
        if (found != table.end()) {
          out.push(found->second);
          break;
        }
      }
      start = end;
    }
    return steps;
  }

  // MaxMatch by walking down the trie as far as it goes, and back to the last piece on the way.
  int64_t rollback(std::string_view word, Buffer<int32_t>& out) const {
    const TrieView& trie = model_.trie;
    const size_t from = out.size();
    int64_t steps = 0;
    if (too_long(word)) return unknown(from, out), steps;
    const auto* const end = reinterpret_cast<const uint8_t*>(word.data()) + word.size();
    int32_t root = TrieView::kRoot;
    for (const auto* start = end - word.size(); start < end; root = trie.suffix_root()) {
      const uint8_t* piece_end = nullptr;
      int32_t piece = kNull;
      int32_t node = root;
      for (const auto* at = start; at < end;) {
        const Decoded d = decode(at, end);
        ++steps;
        node = trie.child(node, CharEntry::value(model_.normal[d.cp]));
        if (node == kNull) break;
        at += d.bytes;
        if (trie.is_piece(node)) {
          piece = node;
          piece_end = at;
        }
      }
      if (piece == kNull) return unknown(from, out), steps;
      out.push(trie.pops(piece)[0]);
      start = piece_end;
    }
    return steps;
  }

  // LinMaxMatch over `trie`, the model's own or one that counts.
  template <class Trie>
  void linear(const Trie& trie, std::string_view word, Buffer<int32_t>& out) const {
    Matcher matcher(trie, model_.unknown, model_.max_chars, out);
    const auto* at = reinterpret_cast<const uint8_t*>(word.data());
    for (const auto* const end = at + word.size(); at < end;) {
      const Decoded d = decode(at, end);
      at += d.bytes;
      matcher.push(CharEntry::value(model_.normal[d.cp]));
    }
    matcher.finish();
  }

  const Model& model() const { return model_; }

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  using Table = std::unordered_map<std::string, int32_t, Hash, std::equal_to<>>;

  bool too_long(std::string_view word) const {
    return count_chars(reinterpret_cast<const uint8_t*>(word.data()), word.size()) > model_.max_chars;
  }
  void unknown(size_t from, Buffer<int32_t>& out) const {
    out.resize(from);
    out.push(model_.unknown);
  }
  // Returns where the character that ends at `end` begins.
  static size_t before(std::string_view word, size_t end) {
    --end;
    while (end > 0 && is_continuation(static_cast<uint8_t>(word[end]))) --end;
    return end;
  }

  const Model& model_;
  std::vector<char32_t> chars_;  // by symbol
  Table initial_, continuing_;
};

}  // namespace chapbook
