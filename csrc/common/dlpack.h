// The part of DLPack's binary interface (https://dmlc.github.io/dlpack) that is used here: what an
// array is, and how a library describes its arrays. Names and layouts are those of the standard.
#pragma once

#include <stdint.h>

extern "C" {

struct DLDevice {
  int32_t device_type;
  int32_t device_id;
};

struct DLDataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null if the array is contiguous
  uint64_t byte_offset;
};

// What a capsule named "dltensor" holds. The capsule's destructor frees it, unless a consumer has
// taken it over.
struct DLManagedTensor {
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensor*);
};

struct DLPackVersion {
  uint32_t major;
  uint32_t minor;
};

struct DLPackExchangeAPIHeader {
  DLPackVersion version;
  DLPackExchangeAPIHeader* prev_api;
};

// What the capsule "dlpack_exchange_api" of a Python type holds. Functions that are not called here
// are declared without their parameters.
struct DLPackExchangeAPI {
  DLPackExchangeAPIHeader header;
  void (*managed_tensor_allocator)();
  void (*managed_tensor_from_py_object_no_sync)();
  void (*managed_tensor_to_py_object_no_sync)();
  // Describes an object of that type, which goes on owning its memory; returns -1 and sets a Python
  // error if it cannot.
  int (*dltensor_from_py_object_no_sync)(void* object, DLTensor* out);
  void (*current_work_stream)();
};

}  // extern "C"
