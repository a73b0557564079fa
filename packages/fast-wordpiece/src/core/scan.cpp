// The portable scan, and the choice between it and the vector ones.
#include "scan.hpp"

#include <array>
#include <cstring>

#if defined(_MSC_VER) && defined(_M_X64)
#include <intrin.h>
#endif

namespace chapbook {
namespace {

enum Class : uint8_t { kWord, kBlank, kPunctuation };

constexpr std::array<uint8_t, 256> make_classes() {
  std::array<uint8_t, 256> classes{};
  for (int c = 0; c < 256; ++c) {
    const auto byte = static_cast<uint8_t>(c);
    classes[byte] = is_blank(byte) ? kBlank : is_punctuation(byte) ? kPunctuation : kWord;
  }
  return classes;
}

constexpr auto kClasses = make_classes();

}  // namespace

size_t scan_scalar(const uint8_t* text, size_t n, bool lower, uint8_t* copy, uint16_t* starts, uint16_t* ends) {
  size_t count = 0, start = 0;
  auto add = [&](size_t from, size_t to) {
    starts[count] = static_cast<uint16_t>(from);
    ends[count++] = static_cast<uint16_t>(to);
  };
  for (size_t i = 0; i < n; ++i) {
    const uint8_t byte = text[i];
    copy[i] = lower && static_cast<uint8_t>(byte - 'A') < 26 ? static_cast<uint8_t>(byte + 32) : byte;
    const uint8_t kind = kClasses[byte];
    if (kind == kWord) continue;
    if (i > start) add(start, i);
    if (kind == kPunctuation) add(i, i + 1);
    start = i + 1;
  }
  if (n > start) add(start, n);
  std::memset(copy + n, 0, kBlock - n % kBlock);
  return count;
}

bool has_isa(Isa isa) {
  if (isa == Isa::kScalar) return true;
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  __builtin_cpu_init();
  const bool bits =
      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
  if (isa == Isa::kAvx2) return bits && __builtin_cpu_supports("avx2");
  return bits && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl");
#elif defined(_MSC_VER) && defined(_M_X64)
  int regs[4];
  __cpuid(regs, 1);
  const bool popcnt = (regs[2] & 1 << 23) != 0, system_saves = (regs[2] & 1 << 27) != 0;
  if (!popcnt || !system_saves) return false;
  const auto saved = _xgetbv(0);
  __cpuidex(regs, 7, 0);
  const bool bmi = (regs[1] & 1 << 3) != 0 && (regs[1] & 1 << 8) != 0;
  if (isa == Isa::kAvx2) return bmi && (saved & 6) == 6 && (regs[1] & 1 << 5) != 0;
  return bmi && (saved & 0xE6) == 0xE6 && (regs[1] & 1 << 16) != 0 && (regs[1] & 1 << 30) != 0 &&
         (static_cast<unsigned>(regs[1]) & 1u << 31) != 0;
#else
  return false;
#endif
}

Isa best_isa() {
  if (has_isa(Isa::kAvx512)) return Isa::kAvx512;
  return has_isa(Isa::kAvx2) ? Isa::kAvx2 : Isa::kScalar;
}

Scan scan_for(Isa isa) {
#if defined(__x86_64__) || defined(_M_X64)
  if (isa == Isa::kAvx512) return scan_avx512;
  if (isa == Isa::kAvx2) return scan_avx2;
#endif
  (void)isa;
  return scan_scalar;
}

}  // namespace chapbook
