// Lays out the tiles of a geometry call in shared memory and picks their size; geometry_kernel.cuh
// describes the kernels.
#include "core/geometry_shape.h"
#include "cuda/geometry_plan.h"
#include "cuda/kernels.h"

ERD_NAMESPACE_BEGIN
namespace {

class Plan {
 public:
  Plan(const GeometryCall& call, int32_t tile) : call_(call), p_() {
    scalar_size_ = call.scalar == ScalarType::float32 ? 4 : 8;
    parts_ = call.order == DerivativeOrder::double_backward ? 2 : 1;
    p_.count = call.count;
    p_.tile = tile;
    p_.tiles = (call.count + tile - 1) / tile;
    p_.joints = static_cast<int32_t>(call.joints);
    p_.status = call.status;
    inputs();
    if (call.order != DerivativeOrder::forward) gradients();
    if (call.order != DerivativeOrder::backward) output();
    order_loads();
  }

  const GeometryParameters& parameters() const { return p_; }
  int64_t shared_bytes() const { return (p_.numbers * parts_ * scalar_size_ + 15) / 16 * 16; }

 private:
  // Room for one row, or for one row per sample. A warp reads the same element of 32 rows at once:
  // with a pitch that is a multiple of 4 many of them would meet in one memory bank. Rows that are
  // read but once a sample may stay as they are.
  Place room(int64_t width, bool per_sample) {
    int32_t pitch = 0;
    if (per_sample) {
      pitch = static_cast<int32_t>(width);
      if (parts_ == 2 ? width % 2 == 0 : width % 4 == 0 && width > kIntrinsics) ++pitch;
    }
    // Every matrix begins at a multiple of 16 bytes.
    const Place place = {p_.numbers, pitch};
    const int32_t numbers = per_sample ? pitch * p_.tile : static_cast<int32_t>(width);
    p_.numbers += (numbers + 3) / 4 * 4;
    return place;
  }

  Transfer transfer(const Place& place, int64_t width, int32_t part) const {
    Transfer t = {};
    t.width = static_cast<int32_t>(width);
    t.width_inverse = static_cast<uint32_t>(((int64_t{1} << 31) + width - 1) / width);
    t.offset = place.offset;
    t.pitch = place.pitch;
    t.part = part;
    t.channels = 1;
    return t;
  }

  void load(const Rows& rows, const Place& place, int64_t width, int32_t part, float fill) {
    Transfer t = transfer(place, width, part);
    t.fill = fill;
    if (rows.data != nullptr) {
      t.data = const_cast<void*>(rows.data);
      t.stride = rows.stride;
      t.joint_stride = rows.joint_stride;
      t.channels = static_cast<int32_t>(rows.channels);
      t.channel_stride = rows.channel_stride;
      const bool gapless = (rows.channels == 1 || rows.channel_stride == 1) &&
                           (rows.channels >= width || rows.joint_stride == rows.channels);
      t.dense = gapless && rows.stride == width;
      t.vectors = t.dense && vectors(t);
    }
    loads_[place.pitch == 0 ? 0 : 1][load_counts_[place.pitch == 0 ? 0 : 1]++] = t;
  }

  void store(void* data, const Place& place, int64_t width, int32_t part) {
    Transfer t = transfer(place, width, part);
    t.data = data;
    t.stride = width;
    t.joint_stride = 1;
    t.dense = true;
    t.vectors = vectors(t);
    p_.store[p_.stores++] = t;
  }

  bool vectors(const Transfer& t) const {
    return parts_ == 1 && t.pitch == t.width && reinterpret_cast<uintptr_t>(t.data) % 16 == 0 &&
           int64_t{p_.tile} * t.width * scalar_size_ % 16 == 0;
  }

  void inputs() {
    const bool second = call_.order == DerivativeOrder::double_backward;
    const auto varies = [](const Rows& rows) { return rows.data != nullptr && rows.stride != 0; };
    for (int slot = 0; slot < kSlots; ++slot) {
      if (!uses_slot(call_.function, slot)) continue;
      const int64_t width = slot_width(slot, call_.joints);
      const bool per_sample =
          varies(call_.inputs[slot]) || (second && varies(call_.tangents[slot]));
      p_.input[slot] = room(width, per_sample);
      // No std and no confidence mean 1; the pinhole camera never reads its distortion.
      load(call_.inputs[slot], p_.input[slot], width, 0, 1.0f);
      if (second) load(call_.tangents[slot], p_.input[slot], width, 1, 0.0f);
    }
  }

  void gradients() {
    const bool second = call_.order == DerivativeOrder::double_backward;
    const int64_t width = geometry_output_width(call_.function, call_.joints);
    const int64_t room_for_unwanted = 2 * call_.joints;
    p_.upstream = room(width > room_for_unwanted ? width : room_for_unwanted, true);
    load(call_.grad_output, p_.upstream, width, 0, 0.0f);
    if (second) load({}, p_.upstream, width, 1, 0.0f);

    const bool in_place = gradients_in_place(call_.function);
    for (int slot = 0; slot < kSlots; ++slot) {
      if (!uses_slot(call_.function, slot)) continue;
      const int64_t its_width = slot_width(slot, call_.joints);
      const bool wanted = call_.gradients[slot] != nullptr;
      const bool of_camera =
          slot == kSlotRoot || slot == kSlotIntrinsics || slot == kSlotDistortion;
      if (of_camera && !wanted && !second) continue;  // it stays in registers
      if (in_place && p_.input[slot].pitch != 0) {
        p_.gradient[slot] = p_.input[slot];
      } else if (wanted || of_camera || slot == kSlotPose) {
        p_.gradient[slot] = room(its_width, true);
      } else {
        // Nobody wants it: it goes where the incoming gradient was, whose share of a joint is read
        // before the joint's gradients are written.
        p_.gradient[slot] = p_.upstream;
      }
      if (wanted) store(call_.gradients[slot], p_.gradient[slot], its_width, second ? 1 : 0);
    }
  }

  void output() {
    const bool second = call_.order == DerivativeOrder::double_backward;
    const int64_t width = geometry_output_width(call_.function, call_.joints);
    p_.output = room(width, true);
    store(call_.output, p_.output, width, second ? 1 : 0);
  }

  void order_loads() {
    for (const int kind : {0, 1}) {
      for (int i = 0; i < load_counts_[kind]; ++i) p_.load[p_.loads++] = loads_[kind][i];
      if (kind == 0) p_.shared_loads = p_.loads;
    }
  }

  const GeometryCall& call_;
  GeometryParameters p_;
  int64_t scalar_size_, parts_;
  Transfer loads_[2][2 * kSlots + 2];
  int load_counts_[2] = {0, 0};
};

}  // namespace
ERD_NAMESPACE_END

namespace erd {

void run_geometry_cuda(const GeometryCall& call, const CudaDevice& device) {
  if (call.count == 0) return;
  // Several blocks shall share a multiprocessor. The runtime takes 1 KB of each for itself.
  constexpr int64_t kReserved = 1024;
  int32_t tile = kGeometryThreads;
  while (tile > 1 && 2 * (Plan(call, tile).shared_bytes() + kReserved) > device.shared_bytes) {
    tile /= 2;
  }
  const Plan plan(call, tile);
  LaunchShape shape;
  shape.threads = kGeometryThreads;
  shape.shared_bytes = plan.shared_bytes();
  const int64_t resident = device.shared_bytes / (shape.shared_bytes + kReserved);
  shape.blocks = grid_blocks(device, plan.parameters().tiles, resident < 1 ? 1 : resident);
  const auto launch_kernel =
      call.scalar == ScalarType::float32 ? launch_geometry_float32 : launch_geometry_float64;
  launch_kernel(call, plan.parameters(), device, shape);
}

}  // namespace erd
