// Kernels with mistakes that can be switched on.
#pragma once

#include <vector>

// run(mistake) returns the exit status: 0 for the right result, 3 for a wrong one.
struct PlantedBug {
  const char* name;
  int (*run)(bool mistake);
};

std::vector<PlantedBug> hopper_bugs();
