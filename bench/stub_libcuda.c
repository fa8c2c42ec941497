/* A CUDA driver that does nothing, for what the host does around a launch (bench.host): what
   Triton's launcher looks up, answering as an H100 would where the answer matters. */
#include <string.h>

typedef int Result;
typedef unsigned long long Pointer;

static int anything;

Result cuCtxGetCurrent(void **context) { *context = &anything; return 0; }
Result cuCtxSetCurrent(void *context) { return 0; }
Result cuCtxGetLimit(size_t *value, int limit) { *value = 0; return 0; }
Result cuCtxSetLimit(int limit, size_t value) { return 0; }
Result cuDeviceGet(int *device, int ordinal) { *device = 0; return 0; }
Result cuDevicePrimaryCtxRetain(void **context, int device) { *context = &anything; return 0; }
Result cuGetErrorString(int error, const char **text) { *text = "no driver"; return 0; }
Result cuModuleLoadData(void **module, const void *data) { *module = &anything; return 0; }
Result cuModuleGetFunction(void **function, void *module, const char *name) {
  *function = &anything;
  return 0;
}
Result cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
Result cuFuncSetCacheConfig(void *function, int config) { return 0; }
Result cuFuncGetAttribute(int *value, int attribute, void *function) {
  *value = attribute == 0 ? 1024 : attribute == 4 ? 128 : 0; /* threads of a block, registers */
  return 0;
}
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
    case 1: *value = 1024; break;    /* threads of a block */
    case 8: *value = 49152; break;   /* shared memory of a block */
    case 10: *value = 32; break;     /* threads of a warp */
    case 16: *value = 132; break;    /* multiprocessors */
    case 75: *value = 9; break;      /* compute capability */
    case 76: *value = 0; break;
    case 81: *value = 233472; break; /* shared memory of a multiprocessor */
    case 82: *value = 65536; break;  /* registers of a multiprocessor */
    case 97: *value = 232448; break; /* shared memory of a block that asks for it */
    default: *value = 1024;
  }
  return 0;
}
Result cuOccupancyMaxActiveClusters(int *count, void *function, void *config) {
  *count = 1;
  return 0;
}
Result cuPointerGetAttribute(void *data, int attribute, Pointer pointer) {
  *(Pointer *)data = pointer;
  return 0;
}
Result cuPointerGetAttributes(void) { return 0; }
Result cuTensorMapEncodeTiled(void) { return 0; }
Result cuLaunchKernel(void) { return 0; }
Result cuLaunchKernelEx(const void *config, void *function, void **parameters, void **extra) {
  return 0;
}
