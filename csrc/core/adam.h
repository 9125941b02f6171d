// Adam (Kingma and Ba 2015, algorithm 1) in the form of torch.optim.Adam, for one number at one
// step: the same on every processor.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/portability.h"
#include "core/training_call.h"

ERD_NAMESPACE_BEGIN

ERD_HD double whole_power(double base, int64_t exponent) {
  double result = 1;
  for (; exponent > 0; exponent /= 2, base *= base) {
    if (exponent % 2 == 1) result *= base;
  }
  return result;
}

template <class S>
struct Adam {
  S weight1, beta2, weight2, eps, step_size, scale;

  // `step` is counted from 1, this one included.
  ERD_HD Adam(const AdamSettings& settings, double lr, int64_t step)
      : weight1(static_cast<S>(1 - settings.beta1)),
        beta2(static_cast<S>(settings.beta2)),
        weight2(static_cast<S>(1 - settings.beta2)),
        eps(static_cast<S>(settings.eps)),
        step_size(static_cast<S>(lr / (1 - whole_power(settings.beta1, step)))),
        scale(static_cast<S>(1 / std::sqrt(1 - whole_power(settings.beta2, step)))) {}

  ERD_HD void update(S& value, S& exp_avg, S& exp_avg_sq, S gradient) const {
    exp_avg += weight1 * (gradient - exp_avg);
    exp_avg_sq = beta2 * exp_avg_sq + weight2 * gradient * gradient;
    value -= step_size * exp_avg / (scale * std::sqrt(exp_avg_sq) + eps);
  }
};

ERD_NAMESPACE_END
