// What the binding's files share: the bound objects, arrays out, and the rows of a batch.
#pragma once

#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL chapbook_fast_wordpiece_numpy
#ifndef FWP_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <nanobind/nanobind.h>
#include <numpy/arrayobject.h>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <vector>

#include "core/batch.hpp"
#include "core/encoder.hpp"
#include "core/model.hpp"

namespace chapbook::bind {

namespace nb = nanobind;

// ---------------------------------------------------------------------------------- arrays out

[[noreturn]] inline void rethrow() { throw nb::python_error(); }

// Wraps memory that std::free releases as an array of `columns` columns (0: one dimension).
inline nb::object wrap(void* data, int type, npy_intp size, npy_intp columns = 0) {
  npy_intp dims[2] = {columns == 0 ? size : size / columns, columns};
  if (data == nullptr) data = std::malloc(1);
  PyObject* array = PyArray_SimpleNewFromData(columns == 0 ? 1 : 2, dims, type, data);
  if (array == nullptr) rethrow();
  nb::capsule owner(data, [](void* p) noexcept { std::free(p); });
  PyArray_SetBaseObject(reinterpret_cast<PyArrayObject*>(array), owner.release().ptr());
  return nb::steal(array);
}

template <class T>
inline constexpr int kNumpyType = -1;
template <>
inline constexpr int kNumpyType<int32_t> = NPY_INT32;
template <>
inline constexpr int kNumpyType<int64_t> = NPY_INT64;
template <>
inline constexpr int kNumpyType<uint8_t> = NPY_UINT8;

template <class T>
nb::object to_array(Buffer<T>&& buffer) {
  const auto size = static_cast<npy_intp>(buffer.size());
  return wrap(buffer.release(), kNumpyType<T>, size);
}

inline nb::object to_array(Buffer<Offset>&& buffer) {
  const auto size = static_cast<npy_intp>(buffer.size());
  return wrap(buffer.release(), NPY_UINT32, 2 * size, 2);
}

// A compiled vocabulary with the scratch memory that its encoders share.
struct SharedModel {
  std::shared_ptr<const Model> model;
  std::shared_ptr<ScratchPool> pool;
};

struct SharedEncoder {
  SharedModel shared;
  Encoder encoder;
  Template plan;
  Truncation truncation;
};

// Lets Python's signal handlers run now and then while the GIL is not held.
class Interrupts {
 public:
  bool operator()() {
    const auto now = std::chrono::steady_clock::now();
    if (now < next_) return true;
    next_ = now + std::chrono::milliseconds(30);
    const nb::gil_scoped_acquire acquire;
    return PyErr_CheckSignals() == 0;
  }

 private:
  std::chrono::steady_clock::time_point next_ = std::chrono::steady_clock::now();
};

// The rows of a batch as a tuple of arrays.
inline nb::tuple encode_rows(SharedEncoder& self, const Texts& first, const Texts* second, const BatchOptions& options) {
  Rows rows;
  {
    const nb::gil_scoped_release release;
    rows = BatchEncoder(self.encoder, self.plan, *self.shared.pool, options).encode(first, second);
  }
  Buffer<int64_t> bounds;
  bounds.push(0);
  bounds.append(rows.ends.data(), rows.ends.size());
  auto none_or = [](bool wanted, auto&& buffer) -> nb::object {
    return wanted ? to_array(std::move(buffer)) : nb::none();
  };
  return nb::make_tuple(to_array(std::move(rows.tokens.ids)), to_array(std::move(bounds)),
                        none_or(options.wanted.offsets, rows.tokens.offsets), none_or(options.wanted.offsets, rows.tokens.words),
                        to_array(std::move(rows.samples)), to_array(std::move(rows.firsts)),
                        to_array(std::move(rows.seconds)), to_array(std::move(rows.overflow)));
}

inline BatchOptions batch_options(const SharedEncoder& self, bool special, bool offsets, bool words, bool bytes, bool overflow,
                           unsigned threads) {
  BatchOptions options;
  options.wanted = {offsets || words, bytes ? OffsetUnit::kByte : OffsetUnit::kChar};
  options.special = special;
  options.truncation = self.truncation;
  options.truncation.overflow = overflow;
  options.threads = std::max(1u, threads);
  options.go_on = Interrupts();
  return options;
}

}  // namespace chapbook::bind
