// Work that several threads share.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace chapbook {

// Runs `work(i, thread)` for each i below `count` on up to `threads` threads, of which the caller is
// number 0. What one of them throws stops the others; the first of it is thrown here.
template <class Work>
void in_parallel(size_t count, size_t threads, Work&& work) {
  if (count == 0) return;
  std::atomic<size_t> next{0};
  std::atomic<bool> stop{false};
  std::exception_ptr failure;
  std::mutex mutex;
  auto run = [&](size_t thread) {
    try {
      for (size_t i; !stop && (i = next++) < count;) work(i, thread);
    } catch (...) {
      stop = true;
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  threads = std::min(threads, count);
  std::vector<std::thread> others;
  others.reserve(threads);
  for (size_t thread = 1; thread < threads; ++thread) {
    try {
      others.emplace_back(run, thread);
    } catch (const std::exception&) {
      break;  // The system gives no more threads, or no memory for them: those that there are do the work.
    }
  }
  run(0);
  for (std::thread& other : others) other.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace chapbook
