// The operations of the module by name.
#pragma once

#include <map>
#include <string>

#include "bindings/fields.h"

namespace spectral {

// What a list of jobs of each name is read by.
const std::map<std::string, Call (*)(const py::list&)>& operations();

}  // namespace spectral
