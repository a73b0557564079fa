// Exact word counts: a hash table for each thread, sorted files of counts, and their merge.
//
// A file of counts is self-checking, because a vocabulary may be trained on it long after:
//   "chapbook counts 1\n", then for each word in byte order its length, its bytes and its count,
//   then a length of 0, the number of words and a checksum. Numbers are LEB128.
#pragma once

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <queue>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace chapbook {

inline uint64_t mix(uint64_t value) {  // The finaliser of splitmix64.
  value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9ull;
  value = (value ^ value >> 27) * 0x94D049BB133111EBull;
  return value ^ value >> 31;
}

inline uint64_t hash_bytes(std::string_view text) {
  uint64_t hash = 0x9E3779B97F4A7C15ull ^ text.size();
  const char* p = text.data();
  size_t left = text.size();
  for (; left > 8; p += 8, left -= 8) {
    uint64_t part;
    std::memcpy(&part, p, 8);
    hash = mix(hash ^ part);
  }
  uint64_t part = 0;
  std::memcpy(&part, p, left);
  return mix(hash ^ part);
}

struct CountedWord {
  std::string_view word;
  uint64_t count;
};

// Open addressing over words that lie in blocks which never move.
class WordTable {
 public:
  WordTable() : slots_(kLeastSlots) {}

  void add(std::string_view word, uint64_t count = 1) {
    const auto hash = static_cast<uint32_t>(hash_bytes(word) >> 32);
    size_t i = hash & (slots_.size() - 1);
    while (slots_[i].count != 0) {
      if (slots_[i].hash == hash && slots_[i].view() == word) {
        slots_[i].count += count;
        return;
      }
      i = (i + 1) & (slots_.size() - 1);
    }
    slots_[i] = {keep(word), static_cast<uint32_t>(word.size()), hash, count};
    if (++words_ * 3 > slots_.size() * 2) grow();
  }

  size_t words() const { return words_; }
  size_t bytes() const { return slots_.size() * sizeof(Slot) + text_bytes_; }

  // Calls `each(CountedWord)`; the views are good until the table is cleared.
  template <class Each>
  void for_each(Each&& each) const {
    for (const Slot& slot : slots_) {
      if (slot.count != 0) each(CountedWord{slot.view(), slot.count});
    }
  }

  void clear() { *this = WordTable(); }

 private:
  struct Slot {
    const char* text = nullptr;
    uint32_t length = 0;
    uint32_t hash = 0;
    uint64_t count = 0;  // 0: the slot is free
    std::string_view view() const { return {text, length}; }
  };

  static constexpr size_t kLeastSlots = 1 << 10;
  static constexpr size_t kBlock = 1 << 18;

  const char* keep(std::string_view word) {
    if (word.size() > UINT32_MAX) throw std::length_error("a word of more than 4 GiB");
    if (word.size() > block_left_) {
      block_left_ = std::max(kBlock, word.size());
      blocks_.emplace_back(new char[block_left_]);
      block_next_ = blocks_.back().get();
      text_bytes_ += block_left_;
    }
    char* text = block_next_;
    std::memcpy(text, word.data(), word.size());
    block_next_ += word.size();
    block_left_ -= word.size();
    return text;
  }

  void grow() {
    std::vector<Slot> old(slots_.size() * 2);
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.count == 0) continue;
      size_t i = slot.hash & (slots_.size() - 1);
      while (slots_[i].count != 0) i = (i + 1) & (slots_.size() - 1);
      slots_[i] = slot;
    }
  }

  std::vector<Slot> slots_;
  std::vector<std::unique_ptr<char[]>> blocks_;
  char* block_next_ = nullptr;
  size_t block_left_ = 0;
  size_t text_bytes_ = 0;
  size_t words_ = 0;
};

struct DamagedCounts : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A C file that throws what the system says.
class CountsFile {
 public:
  CountsFile(const std::string& path, const char* mode) : path_(path) {
    file_ = std::fopen(path.c_str(), mode);
    if (file_ == nullptr) fail();
    std::setvbuf(file_, nullptr, _IOFBF, 1 << 18);
  }
  CountsFile(const CountsFile&) = delete;
  CountsFile& operator=(const CountsFile&) = delete;
  ~CountsFile() {
    if (file_ != nullptr) std::fclose(file_);
  }

  void close() {
    std::FILE* file = std::exchange(file_, nullptr);
    if (std::fclose(file) != 0) fail();
  }

  void write(std::string_view bytes) {
    if (std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size()) fail();
  }

  void write(uint64_t number) {
    char bytes[10];
    size_t n = 0;
    for (; number >= 0x80; number >>= 7) bytes[n++] = static_cast<char>(number | 0x80);
    bytes[n++] = static_cast<char>(number);
    write(std::string_view(bytes, n));
  }

  void read(std::string& bytes, size_t size) {
    bytes.resize(size);
    if (std::fread(bytes.data(), 1, size, file_) != size) damaged();
  }

  uint64_t read() {
    uint64_t number = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const int byte = std::getc(file_);
      if (byte == EOF) damaged();
      number |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return number;
    }
    damaged();
  }

  [[noreturn]] void damaged() const {
    if (std::ferror(file_)) fail();
    throw DamagedCounts(path_ + " is no whole file of word counts");
  }

 private:
  [[noreturn]] void fail() const {
    throw std::system_error(errno, std::generic_category(), path_);
  }

  std::string path_;
  std::FILE* file_;
};

inline constexpr std::string_view kCountsMagic = "chapbook counts 1\n";

// Adds one word to the checksum of a file.
inline uint64_t checksum(uint64_t sum, const CountedWord& next) {
  return mix(sum ^ hash_bytes(next.word)) + next.count;
}

class CountsWriter {
 public:
  explicit CountsWriter(const std::string& path) : file_(path, "wb") { file_.write(kCountsMagic); }

  void operator()(const CountedWord& next) {
    file_.write(next.word.size());
    file_.write(next.word);
    file_.write(next.count);
    sum_ = checksum(sum_, next);
    ++words_;
  }

  void close() {
    file_.write(uint64_t{0});
    file_.write(words_);
    file_.write(sum_);
    file_.close();
  }

 private:
  CountsFile file_;
  uint64_t words_ = 0;
  uint64_t sum_ = 0;
};

// Words with their counts in byte order, one at a time.
class CountsSource {
 public:
  virtual ~CountsSource() = default;
  virtual bool next(CountedWord& to) = 0;
};

class MemorySource final : public CountsSource {
 public:
  explicit MemorySource(std::vector<CountedWord> words) : words_(std::move(words)) {
    std::sort(words_.begin(), words_.end(),
              [](const CountedWord& a, const CountedWord& b) { return a.word < b.word; });
  }
  bool next(CountedWord& to) override {
    if (position_ == words_.size()) return false;
    to = words_[position_++];
    return true;
  }

 private:
  std::vector<CountedWord> words_;
  size_t position_ = 0;
};

class FileSource final : public CountsSource {
 public:
  explicit FileSource(const std::string& path) : file_(path, "rb") {
    file_.read(word_, kCountsMagic.size());
    if (word_ != kCountsMagic) file_.damaged();
  }

  bool next(CountedWord& to) override {
    const uint64_t length = file_.read();
    if (length == 0) {
      if (file_.read() != words_ || file_.read() != sum_) file_.damaged();
      return false;
    }
    if (length > UINT32_MAX) file_.damaged();
    file_.read(word_, length);
    to = {word_, file_.read()};
    sum_ = checksum(sum_, to);
    ++words_;
    return true;
  }

 private:
  CountsFile file_;
  std::string word_;
  uint64_t words_ = 0;
  uint64_t sum_ = 0;
};

using CountsSources = std::vector<std::unique_ptr<CountsSource>>;

// Calls `on_word(CountedWord)` for each distinct word in byte order, with its counts added up, and
// `poll()` now and then.
template <class OnWord, class Poll>
void merge_counts(const CountsSources& sources, OnWord&& on_word, Poll&& poll) {
  std::vector<CountedWord> heads(sources.size());
  auto later = [&heads](size_t a, size_t b) { return heads[a].word > heads[b].word; };
  std::priority_queue<size_t, std::vector<size_t>, decltype(later)> queue(later);
  for (size_t i = 0; i < sources.size(); ++i) {
    if (sources[i]->next(heads[i])) queue.push(i);
  }
  std::string word;
  for (uint64_t merged = 0; !queue.empty(); ++merged) {
    if (merged % 4096 == 0) poll();
    word = heads[queue.top()].word;  // A copy: reading on may reuse the memory.
    uint64_t count = 0;
    while (!queue.empty() && heads[queue.top()].word == word) {
      const size_t i = queue.top();
      queue.pop();
      count += heads[i].count;
      if (sources[i]->next(heads[i])) queue.push(i);
    }
    on_word(CountedWord{word, count});
  }
}

// All words in one piece of memory, in byte order.
struct WordList {
  std::string text;
  std::vector<uint64_t> ends;
  std::vector<uint64_t> counts;

  size_t size() const { return counts.size(); }
  std::string_view word(size_t i) const {
    const uint64_t begin = i == 0 ? 0 : ends[i - 1];
    return std::string_view(text).substr(begin, ends[i] - begin);
  }
  void operator()(const CountedWord& next) {
    text += next.word;
    ends.push_back(text.size());
    counts.push_back(next.count);
  }
};

// Runs `work(thread)` on some threads and calls `poll()` here about every 50 ms. What any of them
// throws stops the others, which look at `stop`, and is thrown here.
template <class Work, class Poll>
void in_threads(size_t threads, std::atomic<bool>& stop, Work&& work, Poll&& poll) {
  std::mutex mutex;
  std::condition_variable done;
  size_t running = threads;
  std::exception_ptr problem;
  auto run = [&](size_t thread) {
    std::exception_ptr mine;
    try {
      work(thread);
    } catch (...) {
      mine = std::current_exception();
    }
    const std::lock_guard lock(mutex);
    if (mine && !problem) problem = mine;
    if (mine) stop = true;
    --running;
    done.notify_one();
  };
  std::vector<std::thread> all;
  auto join = [&] {
    for (std::thread& thread : all) thread.join();
  };
  try {
    for (size_t i = 0; i < threads; ++i) all.emplace_back(run, i);
    std::unique_lock lock(mutex);
    while (!done.wait_for(lock, std::chrono::milliseconds(50), [&] { return running == 0; })) {
      lock.unlock();
      poll();
      lock.lock();
    }
  } catch (...) {
    stop = true;
    join();
    throw;
  }
  join();
  if (problem) std::rethrow_exception(problem);
}

// The words of many texts. The counts do not depend on the number of threads.
class WordCounts {
 public:
  explicit WordCounts(size_t threads) : tables_(std::max<size_t>(threads, 1)) {}
  WordCounts(const WordCounts&) = delete;
  WordCounts& operator=(const WordCounts&) = delete;

  // Counts the words of a text. Where it is cut at an ASCII space, tab or line end, the parts hold
  // the same words as the whole; so what lies between these is counted first, and each different
  // stretch is then read once.
  //
  // `make_reader()` returns, for each thread, a function of `(stretch, on_word)` which calls
  // `on_word(word)` for each word of a stretch.
  template <class MakeReader, class Poll>
  void add(std::string_view text, MakeReader&& make_reader, Poll&& poll) {
    const std::vector<std::string_view> parts = cut(text);
    std::atomic<size_t> next{0};
    std::atomic<bool> stop{false};
    auto work = [&](size_t thread) {
      WordTable stretches;
      for (size_t i; !stop && (i = next++) < parts.size();) add_stretches(parts[i], stretches);
      auto read = make_reader();
      stretches.for_each([&](const CountedWord& stretch) {
        if (stop) return;
        read(stretch.word,
             [&](std::string_view word) { tables_[thread].add(word, stretch.count); });
      });
    };
    if (parts.size() <= 1) {
      work(0);
      poll();
    } else {
      in_threads(std::min(tables_.size(), parts.size()), stop, work, poll);
    }
  }

  size_t bytes() const {
    size_t sum = 0;
    for (const WordTable& table : tables_) sum += table.bytes();
    return sum;
  }

  // Returns the words so far, good until they are cleared. They are sorted in small lots, so that
  // `poll()` is never far.
  template <class Poll>
  CountsSources sources(Poll&& poll) const {
    CountsSources all;
    std::vector<CountedWord> lot;
    auto sort = [&] {
      poll();
      all.push_back(std::make_unique<MemorySource>(std::exchange(lot, {})));
    };
    for (const WordTable& table : tables_) {
      table.for_each([&](const CountedWord& next) {
        lot.push_back(next);
        if (lot.size() == kLot) sort();
      });
    }
    if (!lot.empty()) sort();
    return all;
  }

  void clear() {
    for (WordTable& table : tables_) table.clear();
  }

 private:
  static constexpr size_t kPart = 1 << 16;  // bytes
  static constexpr size_t kLot = 1 << 16;   // words

  static std::vector<std::string_view> cut(std::string_view text) {
    std::vector<std::string_view> parts;
    while (!text.empty()) {
      size_t size = std::min(kPart, text.size());
      while (size < text.size() && !is_space(text[size - 1])) ++size;
      parts.push_back(text.substr(0, size));
      text.remove_prefix(size);
    }
    return parts;
  }

  static void add_stretches(std::string_view part, WordTable& stretches) {
    for (size_t begin = 0, i = 0; i <= part.size(); ++i) {
      if (i < part.size() && !is_space(part[i])) continue;
      if (i > begin) stretches.add(part.substr(begin, i - begin));
      begin = i + 1;
    }
  }

  static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

  std::vector<WordTable> tables_;
};

}  // namespace chapbook
