// LinMaxMatch: greedy longest-match-first cutting of a word, in time linear in its length.
//
// Reference: Song et al., "Fast WordPiece Tokenization", EMNLP 2021, algorithm 1.
#pragma once

#include <cstddef>
#include <cstdint>

#include "buffer.hpp"
#include "trie.hpp"

namespace chapbook {

// Takes a word symbol by symbol and appends its pieces to `out`; a word that cannot be cut, or
// has more than `max_chars` characters, becomes the one id `unknown`.
template <class Trie = TrieView>
class Matcher {
 public:
  Matcher(const Trie& trie, int32_t unknown, uint32_t max_chars, Buffer<int32_t>& out)
      : trie_(trie), unknown_(unknown), max_chars_(max_chars), out_(out), start_(out.size()) {}

  // True while no symbol has come since the last word ended.
  bool at_start() const { return chars_ == 0; }

  // `symbol` 0 stands for every character that no piece holds.
  void push(uint32_t symbol) {
    if (++chars_ > max_chars_) node_ = kNull;
    if (node_ == kNull) return;
    int32_t next;
    while ((next = trie_.child(node_, symbol)) == kNull) {
      if (!pop()) return;
    }
    node_ = next;
  }

  // Ends the word, if there is one.
  void finish() {
    if (chars_ == 0) return;
    while (node_ != kNull && node_ != trie_.suffix_root()) pop();
    if (node_ == kNull) {
      out_.resize(start_);
      out_.push(unknown_);
    }
    node_ = TrieView::kRoot;
    chars_ = 0;
    start_ = out_.size();
  }

  // Appends the id of a token that is a word of its own.
  void single(int32_t id) {
    finish();
    out_.push(id);
    start_ = out_.size();
  }

 private:
  // Emits the failure pops and takes the failure link; false at a dead end.
  bool pop() {
    const int32_t next = trie_.fail(node_);
    if (next != kNull) {
      const auto ids = trie_.pops(node_);
      out_.append(ids.data(), ids.size());
    }
    node_ = next;
    return next != kNull;
  }

  const Trie trie_;
  const int32_t unknown_;
  const uint32_t max_chars_;
  Buffer<int32_t>& out_;
  int32_t node_ = TrieView::kRoot;
  uint32_t chars_ = 0;
  size_t start_;
};

}  // namespace chapbook
