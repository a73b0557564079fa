// A growable array that does not clear what it grows by: output is written once.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

namespace chapbook {

template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }

  void clear() { size_ = 0; }

  // Makes room for `more` further elements; pointers into the buffer may move.
  void reserve_more(size_t more) {
    if (size_ + more > capacity_) grow(size_ + more);
  }

  void push(T value) {
    reserve_more(1);
    data_[size_++] = value;
  }

  void append(const T* values, size_t count) {
    if (count == 0) return;
    reserve_more(count);
    std::memcpy(data_ + size_, values, count * sizeof(T));
    size_ += count;
  }

  // Copies all of another buffer over the elements from `at` on, of which there must be enough.
  void put(size_t at, const Buffer& from) {
    if (from.size_ != 0) std::memcpy(data_ + at, from.data_, from.size_ * sizeof(T));
  }

  // Sets the size; elements beyond the old size are not initialised.
  void resize(size_t size) {
    if (size > capacity_) grow(size);
    size_ = size;
  }

  // Hands over the memory, to be freed with std::free.
  T* release() {
    T* data = data_;
    data_ = nullptr;
    size_ = capacity_ = 0;
    return data;
  }

  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
  }

 private:
  void grow(size_t least) {
    size_t capacity = capacity_ + capacity_ / 2;
    if (capacity < least) capacity = least;
    if (capacity < 64) capacity = 64;
    void* data = std::realloc(static_cast<void*>(data_), capacity * sizeof(T));
    if (data == nullptr) throw std::bad_alloc();
    data_ = static_cast<T*>(data);
    capacity_ = capacity;
  }

  T* data_ = nullptr;
  size_t size_ = 0;
  size_t capacity_ = 0;
};

}  // namespace chapbook
