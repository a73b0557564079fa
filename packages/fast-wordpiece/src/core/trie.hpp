// The trie of LinMaxMatch with its failure pops and failure links, as a double array.
//
// Edge labels are symbols: the distinct characters of the vocabulary, numbered from 1 by how often
// they occur, so that a character costs one step whatever its length in UTF-8. Pieces that begin a
// word and pieces that continue one lie in two tries with roots of their own; the failure links
// lead from the first into the second. The suffix mark is thereby never spelled out, and a word
// that looks like the mark needs no care.
//
// Reference: Song, Salcianu, Song, Dopson, Zhou, "Fast WordPiece Tokenization", EMNLP 2021,
// section 3.2 and algorithm 2.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <stdexcept>
#include <vector>

namespace chapbook {

inline constexpr int32_t kNull = -1;

struct Node {
  uint32_t base = 0;      // the child along symbol c is node base + c, if its parent says so
  uint32_t parent = ~0u;  // ~0: no node is here
  int32_t fail = kNull;   // f(v): where matching goes on after the failure pops; kNull: nowhere
  uint32_t pops = 0;      // F(v): offset into the pool of ids << 8 | how many
};
static_assert(sizeof(Node) == 16);

// A piece as symbols.
struct TriePiece {
  std::span<const uint32_t> symbols;
  int32_t id;
};

class TrieView {
 public:
  TrieView() = default;
  TrieView(std::span<const Node> nodes, std::span<const int32_t> pool, int32_t suffix_root)
      : nodes_(nodes.data()), pool_(pool.data()), size_(nodes.size()), suffix_root_(suffix_root) {}

  static constexpr int32_t kRoot = 0;
  int32_t suffix_root() const { return suffix_root_; }

  // Returns the child of `node` along `symbol`, or kNull.
  int32_t child(int32_t node, uint32_t symbol) const {
    const uint32_t index = nodes_[node].base + symbol;
    return nodes_[index].parent == static_cast<uint32_t>(node) ? static_cast<int32_t>(index) : kNull;
  }
  int32_t fail(int32_t node) const { return nodes_[node].fail; }
  std::span<const int32_t> pops(int32_t node) const {
    return {pool_ + (nodes_[node].pops >> 8), nodes_[node].pops & 0xFF};
  }

  // Places of the array; not at every one of them is a node.
  size_t size() const { return size_; }
  // Returns the parent, or kNull where there is no node or it is a root.
  int32_t parent(int32_t node) const {
    const uint32_t parent = nodes_[node].parent;
    return parent < size_ ? static_cast<int32_t>(parent) : kNull;
  }
  // Returns the label of the edge that leads to a node with a parent.
  uint32_t symbol(int32_t node) const {
    return static_cast<uint32_t>(node) - nodes_[nodes_[node].parent].base;
  }
  // Pieces fail to the suffix root, and nothing else does: it is no other node's longest remainder.
  bool is_piece(int32_t node) const { return parent(node) != kNull && fail(node) == suffix_root_; }

 private:
  const Node* nodes_ = nullptr;
  const int32_t* pool_ = nullptr;
  size_t size_ = 0;
  int32_t suffix_root_ = 1;
};

// Builds the arrays.
class TrieBuilder {
 public:
  std::vector<Node> nodes;
  std::vector<int32_t> pool;
  int32_t suffix_root = 1;

  // `empty_mark`: continuing pieces are spelled like initial ones, so the two tries are one.
  TrieBuilder(std::vector<TriePiece> initial, std::vector<TriePiece> continuing, bool empty_mark,
              uint32_t symbols)
      : symbols_(symbols) {
    sort(initial);
    sort(continuing);
    reach(2);
    for (uint32_t root : {0, 1}) {
      nodes[root].parent = kRootParent;
      next_free_[root] = root + 1;
    }
    suffix_root = empty_mark ? 0 : 1;
    std::vector<Task> queue;
    queue.reserve(2 * (initial.size() + continuing.size()) + 2);
    queue.push_back({&initial, 0, initial.size(), 0, 0});
    if (!empty_mark) queue.push_back({&continuing, 0, continuing.size(), 0, 1});
    // Breadth first: every node that the failure rule looks at is nearer to its root, so it and
    // its children are already in place.
    for (size_t i = 0; i < queue.size(); ++i) {
      const Task task = queue[i];
      place_children(task, queue);
    }
    nodes.resize(static_cast<size_t>(highest_base_) + symbols_ + 1);
    nodes.shrink_to_fit();
  }

 private:
  static constexpr uint32_t kFree = ~0u;
  static constexpr uint32_t kRootParent = ~0u - 1;
  static constexpr uint32_t kMaxPool = 1u << 24;

  struct Task {
    const std::vector<TriePiece>* pieces;
    size_t begin, end;  // the pieces below this node
    uint32_t depth;
    uint32_t node;
  };
  struct Child {
    uint32_t symbol;
    size_t begin, end;
  };

  static void sort(std::vector<TriePiece>& pieces) {
    std::sort(pieces.begin(), pieces.end(),
              [](const TriePiece& a, const TriePiece& b) {
                return std::lexicographical_compare(a.symbols.begin(), a.symbols.end(), b.symbols.begin(),
                                                    b.symbols.end());
              });
  }

  void place_children(const Task& task, std::vector<Task>& queue) {
    const auto& pieces = *task.pieces;
    size_t at = task.begin;
    while (at < task.end && pieces[at].symbols.size() == task.depth) ++at;  // the node's own piece
    children_.clear();
    while (at < task.end) {
      const uint32_t symbol = pieces[at].symbols[task.depth];
      size_t end = at + 1;
      while (end < task.end && pieces[end].symbols[task.depth] == symbol) ++end;
      children_.push_back({symbol, at, end});
      at = end;
    }
    if (children_.empty()) return;
    const uint32_t base = find_base();
    highest_base_ = std::max(highest_base_, base);
    nodes[task.node].base = base;
    for (const Child& child : children_) {
      const uint32_t index = base + child.symbol;
      nodes[index].parent = task.node;
      const TriePiece& first = pieces[child.begin];
      const bool piece = first.symbols.size() == task.depth + 1;
      set_failure(index, task.node, child.symbol, piece ? &first.id : nullptr);
      queue.push_back({task.pieces, child.begin, child.end, task.depth + 1, index});
    }
  }

  // Returns a base at which all children find free places, and makes the array reach there.
  uint32_t find_base() {
    const uint32_t first = children_.front().symbol;
    uint32_t vain = 0;
    for (uint32_t at = free_from(std::max(cursor_, first));; at = free_from(at + 1)) {
      const uint32_t base = at - first;
      reach(base);
      const bool fits = std::all_of(children_.begin(), children_.end(), [&](const Child& child) {
        return nodes[base + child.symbol].parent == kFree;
      });
      if (fits) {
        for (const Child& child : children_) next_free_[base + child.symbol] = base + child.symbol + 1;
        return base;
      }
      // A dense stretch costs every later search, so after some vain tries it is left behind.
      if (++vain % kVainTries == 0) cursor_ = at;
    }
  }

  // Returns the first free place from `at` on, shortening the way for the next search.
  uint32_t free_from(uint32_t at) {
    if (at >= nodes.size()) reach(at);
    uint32_t root = at;
    while (next_free_[root] != root) root = next_free_[root];
    while (next_free_[at] != root) {
      const uint32_t next = next_free_[at];
      next_free_[at] = root;
      at = next;
    }
    if (root >= nodes.size()) reach(root);
    return root;
  }

  // Makes the children of a node with this base lie inside the array, whatever their symbols.
  void reach(uint32_t base) {
    const size_t wanted = static_cast<size_t>(base) + symbols_ + 1;
    if (wanted <= nodes.size()) return;
    nodes.resize(wanted + wanted / 2);
    const size_t known = next_free_.size();
    next_free_.resize(nodes.size() + 1);
    std::iota(next_free_.begin() + static_cast<std::ptrdiff_t>(known), next_free_.end(),
              static_cast<uint32_t>(known));
  }

  // The precomputation of algorithm 2 for the child v of u along c.
  void set_failure(uint32_t v, uint32_t u, uint32_t c, const int32_t* piece) {
    if (piece != nullptr) {
      nodes[v].fail = suffix_root;
      nodes[v].pops = store(piece, 1);
      return;
    }
    const TrieView view(nodes, pool, suffix_root);
    popped_.clear();
    int32_t z = nodes[u].fail;
    while (z != kNull) {
      const int32_t next = view.child(z, c);
      if (next != kNull) {
        nodes[v].fail = next;
        if (popped_.empty()) {
          nodes[v].pops = nodes[u].pops;
        } else {
          const auto before = view.pops(static_cast<int32_t>(u));
          popped_.insert(popped_.begin(), before.begin(), before.end());
          nodes[v].pops = store(popped_.data(), popped_.size());
        }
        return;
      }
      const auto more = view.pops(z);
      popped_.insert(popped_.end(), more.begin(), more.end());
      z = nodes[z].fail;
    }
    nodes[v].fail = kNull;
    nodes[v].pops = 0;
  }

  uint32_t store(const int32_t* ids, size_t count) {
    if (count > 255) throw std::length_error("a piece has more than 255 characters");
    if (pool.size() + count > kMaxPool) throw std::length_error("the vocabulary is too large");
    const auto offset = static_cast<uint32_t>(pool.size());
    pool.insert(pool.end(), ids, ids + count);
    return offset << 8 | static_cast<uint32_t>(count);
  }

  static constexpr uint32_t kVainTries = 32;
  uint32_t symbols_;
  uint32_t cursor_ = 0;
  uint32_t highest_base_ = 0;
  std::vector<uint32_t> next_free_;  // a place that is free, or one nearer to the next such
  std::vector<Child> children_;
  std::vector<int32_t> popped_;
};

}  // namespace chapbook
