#include "cpu/common/instruction_sets.h"

#include <stdexcept>

namespace spectral {
namespace {

InstructionSet best() {
#if SK_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
    return avx512 ? InstructionSet::avx512 : InstructionSet::avx2;
  }
#endif
  return InstructionSet::generic;
}

InstructionSet& current() {
  static InstructionSet chosen = best();
  return chosen;
}

}  // namespace

InstructionSet instruction_set() {
  return current();
}

std::string name_of(InstructionSet set) {
  static const char* const names[] = {"generic", "avx2", "avx512"};
  return names[static_cast<int>(set)];
}

std::vector<std::string> usable_instruction_sets() {
  std::vector<std::string> names;
  for (int set = 0; set <= static_cast<int>(best()); ++set)
    names.push_back(name_of(static_cast<InstructionSet>(set)));
  return names;
}

void use_instruction_set(const std::string& name) {
  std::string usable;
  for (int set = 0; set <= static_cast<int>(best()); ++set) {
    const std::string other = name_of(static_cast<InstructionSet>(set));
    if (name == other) {
      current() = static_cast<InstructionSet>(set);
      return;
    }
    usable += (usable.empty() ? "" : ", ") + other;
  }
  throw std::invalid_argument("no instruction set '" + name + "' here; usable: " + usable);
}

}  // namespace spectral
