// Which instruction sets kernels are compiled for, and which of them runs.
//
// Every kernels.cpp is compiled once for each, in a namespace of its name, and makes one table of
// function pointers; the rest asks kernels<Table>() for the table in use.
#pragma once

#include <string>
#include <vector>

// setup.py sets it; a compiler that tells knows as well.
#ifndef SK_X86
#define SK_X86 0
#endif

namespace spectral {

enum class InstructionSet : int { generic = 0, avx2 = 1, avx512 = 2 };

// float64 numbers in a vector.
constexpr int lanes_of(InstructionSet set) {
  return 2 << static_cast<int>(set);
}

// The best this machine has, until another is chosen.
InstructionSet instruction_set();
std::string name_of(InstructionSet set);
std::vector<std::string> usable_instruction_sets();
void use_instruction_set(const std::string& name);

// Defined by the kernels.cpp that fills the table, for the set it is compiled for.
template <class Table, InstructionSet set>
const Table& compiled_for();

template <class Table>
const Table& kernels() {
#if SK_X86
  if (instruction_set() == InstructionSet::avx512)
    return compiled_for<Table, InstructionSet::avx512>();
  if (instruction_set() == InstructionSet::avx2) return compiled_for<Table, InstructionSet::avx2>();
#endif
  return compiled_for<Table, InstructionSet::generic>();
}

}  // namespace spectral
