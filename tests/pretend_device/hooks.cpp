// Lets a torch built for the CPU alone take cuda:0 or mps:0 for a device: guards, streams and events that do nothing.
// PRETEND_DEVICE names which of the two there is. Loaded before torch is imported (library.py).
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/detail/MPSHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unistd.h>

// Called when Python exits. Autograd's threads for a device wake when torch's statics are destroyed, and before Python
// 3.12 they may then abort the process because Python has gone; so it ends before, with the same status.
extern "C" void end_before_statics() {
#ifdef __GLIBC__
  on_exit([](int status, void*) { std::fflush(nullptr); _exit(status); }, nullptr);
#endif
}

namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::EventFlag;
using c10::Stream;

bool is_pretended(const char* kind) {
  const char* name = std::getenv("PRETEND_DEVICE");
  return name != nullptr && std::strcmp(name, kind) == 0;
}

template <DeviceType TYPE>
struct Guard final : c10::impl::DeviceGuardImplInterface {
  static Stream stream() { return Stream(Stream::DEFAULT, Device(TYPE, 0)); }
  DeviceType type() const override { return TYPE; }
  Device exchangeDevice(Device) const override { return Device(TYPE, 0); }
  Device getDevice() const override { return Device(TYPE, 0); }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const noexcept override { return stream(); }
  Stream getNewStream(Device, int) const override { return stream(); }
  Stream exchangeStream(Stream) const noexcept override { return stream(); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void** event, const Stream&, const DeviceIndex, const EventFlag) const override {
    *event = reinterpret_cast<void*>(1);
  }
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
};

c10::impl::DeviceGuardImplRegistrar cuda_guard(DeviceType::CUDA, new Guard<DeviceType::CUDA>());
c10::impl::DeviceGuardImplRegistrar mps_guard(DeviceType::MPS, new Guard<DeviceType::MPS>());

template <class Interface>
struct Hooks : Interface {
  explicit Hooks(const char* kind) : here(is_pretended(kind)) {}
  void init() const override {}
  bool isBuilt() const override { return here; }
  bool isAvailable() const override { return here; }
  bool hasPrimaryContext(DeviceIndex) const override { return here; }
  DeviceIndex deviceCount() const override { return here ? 1 : 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  const bool here;
};

struct CudaHooks final : Hooks<at::CUDAHooksInterface> {
  CudaHooks() : Hooks("cuda") {}
  bool hasCUDA() const override { return here; }
  DeviceIndex current_device() const override { return 0; }
};

struct MpsHooks final : Hooks<at::MPSHooksInterface> {
  MpsHooks() : Hooks("mps") {}
  bool hasMPS() const override { return here; }
};

}  // namespace

namespace at {  // where the registries are declared
using CudaRegisterer = c10::Registerer<std::string, std::unique_ptr<CUDAHooksInterface>, CUDAHooksArgs>;
using MpsRegisterer = c10::Registerer<std::string, std::unique_ptr<MPSHooksInterface>>;
static CudaRegisterer cuda_hooks(
    "CUDAHooks", CUDAHooksRegistry(),
    [](CUDAHooksArgs) -> std::unique_ptr<CUDAHooksInterface> { return std::make_unique<::CudaHooks>(); });
static MpsRegisterer mps_hooks(
    "MPSHooks", MPSHooksRegistry(),
    []() -> std::unique_ptr<MPSHooksInterface> { return std::make_unique<::MpsHooks>(); });
}  // namespace at
