// Many texts at once, on several threads, into the rows of one batch.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

#include "encoder.hpp"
#include "post.hpp"

namespace chapbook {

// Scratch memory that outlives a call, so that its caches stay warm. Nobody waits for it: who cannot
// have the lock at once, as in the child of a fork in a bad moment, makes scratch memory of its own.
class ScratchPool {
 public:
  explicit ScratchPool(uint32_t cache_bits) : cache_bits_(cache_bits) {}

  std::unique_ptr<Scratch> take() {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock && !free_.empty()) {
      auto scratch = std::move(free_.back());
      free_.pop_back();
      return scratch;
    }
    return std::make_unique<Scratch>(cache_bits_);
  }

  void give(std::unique_ptr<Scratch> scratch) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock) free_.push_back(std::move(scratch));
  }

 private:
  const uint32_t cache_bits_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Scratch>> free_;
};

class Borrowed {
 public:
  explicit Borrowed(ScratchPool& pool) : pool_(pool), scratch_(pool.take()) {}
  ~Borrowed() { pool_.give(std::move(scratch_)); }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  Scratch& operator*() { return *scratch_; }

 private:
  ScratchPool& pool_;
  std::unique_ptr<Scratch> scratch_;
};

// The texts of one side of a batch. Where `splits` is given, the words of sample i are
// texts[splits[i]] .. texts[splits[i + 1] - 1]. A text without data is null.
struct Texts {
  std::span<const std::string_view> texts;
  std::span<const int64_t> splits;

  size_t size() const { return splits.empty() ? texts.size() : splits.size() - 1; }
};

struct BatchOptions {
  Wanted wanted;
  bool special = true;  // add the template's special tokens
  Truncation truncation;
  bool count_only = false;  // keep no tokens: Rows::ends then holds each row's length
  unsigned threads = 1;
  // Called now and then on the calling thread; false stops the work.
  std::function<bool()> go_on = [] { return true; };
};

// The work was stopped by BatchOptions::go_on.
struct Stopped : std::exception {};

class BatchEncoder {
 public:
  BatchEncoder(const Encoder& encoder, const Template& plan, ScratchPool& pool, const BatchOptions& options)
      : encoder_(encoder), plan_(plan), pool_(pool), options_(options) {}

  // Returns the parts of the batch in order; each holds the rows of a range of samples.
  std::vector<Rows> encode(const Texts& first, const Texts* second) {
    encode_long_texts(first, second);
    const std::vector<Range> chunks = chunked(first, second);
    std::vector<Rows> parts(chunks.size());
    parallel(chunks.size(), [&](size_t i, Scratch& scratch) {
      Tokens a, b;
      for (size_t sample = chunks[i].begin; sample < chunks[i].end; ++sample) {
        encode_sample(scratch, first, second, sample, a, b, parts[i]);
        if (options_.count_only) parts[i].tokens.clear();
      }
    });
    return parts;
  }

 private:
  static constexpr size_t kChunk = 64 * 1024;
  static constexpr size_t kLong = 1024 * 1024;

  void encode_sample(Scratch& scratch, const Texts& first, const Texts* second, size_t sample, Tokens& a, Tokens& b,
                     Rows& out) const {
    const auto number = static_cast<int32_t>(sample);
    if (first.splits.empty() && first.texts[sample].data() == nullptr) {  // null
      Assembler::end_row(out, number, 0, 0, 0);
      return;
    }
    if (second == nullptr && !options_.truncation.enabled) {
      straight(scratch, first, sample, out);
      return;
    }
    const Tokens* tokens_a = &a;
    if (const Tokens* done = long_text(first, sample)) {
      tokens_a = done;
    } else {
      a.clear();
      encode_side(scratch, first, sample, a);
    }
    if (second == nullptr) {
      write_rows(*tokens_a, nullptr, plan_, options_.special, options_.truncation, options_.wanted, number, out);
      return;
    }
    b.clear();
    encode_side(scratch, *second, sample, b);
    write_rows(*tokens_a, &b, plan_, options_.special, options_.truncation, options_.wanted, number, out);
  }

  // Writes the tokens of a sample where they will stay, with the special tokens around them.
  void straight(Scratch& scratch, const Texts& texts, size_t sample, Rows& out) const {
    static const std::vector<Template::Piece> kBare{{Template::kFirst, 0}};
    size_t count = 0;
    for (const Template::Piece& piece : options_.special ? plan_.single : kBare) {
      if (piece.kind == Template::kSpecial) {
        out.tokens.ids.push(piece.id);
        if (options_.wanted.offsets) out.tokens.offsets.push({0, 0});
        if (options_.wanted.offsets) out.tokens.words.push(-1);
        continue;
      }
      const size_t before = out.tokens.ids.size();
      if (const Tokens* done = long_text(texts, sample)) {
        out.tokens.ids.append(done->ids.data(), done->ids.size());
        out.tokens.offsets.append(done->offsets.data(), done->offsets.size());
        out.tokens.words.append(done->words.data(), done->words.size());
      } else {
        encode_side(scratch, texts, sample, out.tokens);
      }
      count = out.tokens.ids.size() - before;
    }
    Assembler::end_row(out, static_cast<int32_t>(sample), count, 0, 0);
  }

  void encode_side(Scratch& scratch, const Texts& side, size_t sample, Tokens& out) const {
    if (side.splits.empty()) {
      encode_text(scratch, side.texts[sample], out);
      return;
    }
    // Words given by the caller: each is a text of its own, and all of its tokens are that word.
    const auto begin = side.splits[sample], end = side.splits[sample + 1];
    for (int64_t i = begin; i < end; ++i) {
      const size_t from = out.words.size();
      encode_text(scratch, side.texts[static_cast<size_t>(i)], out);
      std::fill(out.words.begin() + from, out.words.end(), static_cast<int32_t>(i - begin));
    }
  }

  void encode_text(Scratch& scratch, std::string_view text, Tokens& out) const {
    encoder_.encode(scratch, reinterpret_cast<const uint8_t*>(text.data()), text.size(), options_.wanted, out);
  }

  // Texts so long that they would keep one thread busy alone, and deaf, are cut into pieces first.
  void encode_long_texts(const Texts& first, const Texts* second) {
    if (second != nullptr || !first.splits.empty()) return;
    struct Piece {
      size_t text, begin, end;
      Tokens tokens;
      Encoder::Position position;
    };
    std::vector<Piece> pieces;
    for (size_t i = 0; i < first.texts.size(); ++i) {
      const std::string_view text = first.texts[i];
      if (text.size() < kLong) continue;
      size_t begin = 0;
      for (size_t end : encoder_.cuts(reinterpret_cast<const uint8_t*>(text.data()), text.size(), 4 * kChunk)) {
        pieces.push_back({i, begin, end, {}, {}});
        begin = end;
      }
    }
    parallel(pieces.size(), [&](size_t i, Scratch& scratch) {
      Piece& piece = pieces[i];
      const auto* data = reinterpret_cast<const uint8_t*>(first.texts[piece.text].data());
      piece.position = encoder_.encode(scratch, data + piece.begin, piece.end - piece.begin, options_.wanted, piece.tokens);
    });
    Encoder::Position position;
    for (Piece& piece : pieces) {
      if (piece.begin == 0) {
        long_.push_back({piece.text, {}});
        position = {};
      }
      Tokens& whole = long_.back().tokens;
      for (Offset& offset : piece.tokens.offsets) offset = {offset.start + position.at, offset.end + position.at};
      for (int32_t& word : piece.tokens.words) word += position.word;
      whole.ids.append(piece.tokens.ids.data(), piece.tokens.ids.size());
      whole.offsets.append(piece.tokens.offsets.data(), piece.tokens.offsets.size());
      whole.words.append(piece.tokens.words.data(), piece.tokens.words.size());
      position.at += piece.position.at;
      position.word += piece.position.word;
      piece.tokens = {};
    }
  }

  const Tokens* long_text(const Texts& texts, size_t sample) const {
    if (long_.empty() || !texts.splits.empty()) return nullptr;
    const auto found = std::lower_bound(long_.begin(), long_.end(), sample,
                                        [](const Long& each, size_t text) { return each.text < text; });
    return found != long_.end() && found->text == sample ? &found->tokens : nullptr;
  }

  // Ranges of samples of at least kChunk bytes; one range where one thread works.
  std::vector<Range> chunked(const Texts& first, const Texts* second) const {
    std::vector<Range> chunks;
    const size_t n = first.size();
    size_t begin = 0, bytes = 0;
    auto weight = [&](const Texts& side, size_t sample) {
      size_t sum = 0;
      const size_t from = side.splits.empty() ? sample : static_cast<size_t>(side.splits[sample]);
      const size_t to = side.splits.empty() ? sample + 1 : static_cast<size_t>(side.splits[sample + 1]);
      for (size_t i = from; i < to; ++i) sum += side.texts[i].size() + 16;
      return sum;
    };
    for (size_t i = 0; i < n; ++i) {
      bytes += weight(first, i) + (second == nullptr ? 0 : weight(*second, i));
      if (bytes >= kChunk) {
        chunks.push_back({begin, i + 1});
        begin = i + 1;
        bytes = 0;
      }
    }
    if (begin < n) chunks.push_back({begin, n});
    return chunks;
  }

  // Runs `work(i, scratch)` for each i on the threads, and passes on the first exception.
  template <class Work>
  void parallel(size_t count, Work&& work) {
    if (count == 0) return;
    std::atomic<size_t> next{0};
    std::atomic<bool> stop{false};
    std::exception_ptr failure;
    std::mutex mutex;
    auto run = [&](bool caller) {
      try {
        Borrowed scratch(pool_);
        for (size_t i; !stop && (i = next++) < count;) {
          work(i, *scratch);
          if (caller && !options_.go_on()) throw Stopped();
        }
      } catch (...) {
        stop = true;
        const std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
      }
    };
    const size_t threads = std::min<size_t>(options_.threads, count);
    std::vector<std::thread> others;
    for (size_t t = 1; t < threads; ++t) {
      try {
        others.emplace_back(run, false);
      } catch (const std::system_error&) {
        break;  // The system gives no more threads: those that there are do the work.
      }
    }
    run(true);
    for (std::thread& other : others) other.join();
    if (failure) std::rethrow_exception(failure);
  }

  struct Long {
    size_t text;
    Tokens tokens;
  };

  const Encoder& encoder_;
  const Template& plan_;
  ScratchPool& pool_;
  const BatchOptions& options_;
  std::vector<Long> long_;
};

}  // namespace chapbook
