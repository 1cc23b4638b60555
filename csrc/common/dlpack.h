// The part of DLPack's binary interface that is read here (https://dmlc.github.io/dlpack): what an
// array is, and how a library describes its own. Names and layouts are the standard's.
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
  int64_t* strides;  // in elements; null where rows lie one after the other
  uint64_t byte_offset;
};

// What a capsule named "dltensor" holds; its destructor frees what nobody has taken over.
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

// What the capsule "dlpack_exchange_api" of a type holds. Functions that are not called have no type.
struct DLPackExchangeAPI {
  DLPackExchangeAPIHeader header;
  void (*managed_tensor_allocator)();
  void (*managed_tensor_from_py_object_no_sync)();
  void (*managed_tensor_to_py_object_no_sync)();
  // Describes an object of that type, which keeps what it owns; -1 with a Python error set.
  int (*dltensor_from_py_object_no_sync)(void* object, DLTensor* out);
  void (*current_work_stream)();
};

}  // extern "C"
