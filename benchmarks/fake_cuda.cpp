// What autograd and the dispatcher ask of a CUDA device that only exists as a name: it is device 0, and has one stream.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
constexpr auto kCUDA = c10::DeviceType::CUDA;

struct NamedDevice : c10::impl::NoOpDeviceGuardImpl<kCUDA> {
  c10::Device getDevice() const override { return {kCUDA, 0}; }
  c10::Device exchangeDevice(c10::Device) const override { return {kCUDA, 0}; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Stream getStream(c10::Device device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
};
C10_REGISTER_GUARD_IMPL(CUDA, NamedDevice);
}  // namespace

namespace at {
struct NamedHooks : CUDAHooksInterface {
  NamedHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void deviceSynchronize(DeviceIndex) const override {}
};
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, NamedHooks)
}  // namespace at
