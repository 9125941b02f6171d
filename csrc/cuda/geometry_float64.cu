#include "cuda/geometry_kernel.cuh"

ERD_NAMESPACE_BEGIN

void launch_geometry_float64(const GeometryCall& call, const GeometryParameters& parameters,
                             const CudaDevice& device, const LaunchShape& shape) {
  launch(select_geometry_kernel<double>(call), device, shape, parameters);
}

ERD_NAMESPACE_END
