// What moves a chain on a CUDA device: a thread, or a warp. A Chain has
//
//   kThreads          the threads of a chain
//   kKeepsLayers      whether its block has a copy of the net's layers in shared memory
//   shared_room(net)  how many numbers of type T each chain needs there
//   transition(...)   one transition of a chain
//
// Shared memory has the sums of the block's warps, then the layers, then the rooms of the chains.
#pragma once

#include "mlp/device_run.h"
#include "mlp/mlp_static.h"
#include "mlp/transition_chains_in_lanes.h"
#include "mlp/transition_in_warp.h"

namespace cogen {
namespace COGEN_ISA {

constexpr int kMostWarps = 32;

COGEN_HD constexpr int64_t bytes_of_sums() { return kMostWarps * sizeof(double); }

template <class T>
COGEN_HD T* shared_numbers(char* shared) {
  return reinterpret_cast<T*>(shared + bytes_of_sums());
}

template <class T, class Machine>
COGEN_HD void copy_numbers(const Machine& machine, const T* from, int count, T* to) {
  for (int i = machine.thread; i < count; i += machine.threads) to[i] = from[i];
}

// Copies all layers, one after the other, to where they are read from.
template <class T, class Machine>
COGEN_HD_LARGE void copy_layers(const Machine& machine, const Mlp<T>& net, const int* first,
                                T* numbers) {
  for (int k = 0; k < net.layers; ++k) {
    const int in = net.width[k], out = net.width[k + 1];
    T* const to = numbers + first[k];
    copy_numbers(machine, net.weight[k], in * padded(out), to);
    copy_numbers(machine, net.bias[k], padded(out), to + in * padded(out));
    copy_numbers(machine, net.back[k], out * padded(in), to + (in + 1) * padded(out));
  }
  machine.sync_block();
}

// How many numbers a thread has for a chain of a net whose widths are not known at compile time.
// Nets that need more are left to warps.
constexpr int kThreadRoom = 320;

// How many numbers of type T a thread needs for its chain.
template <class T>
COGEN_HD int64_t room_of_thread(const Mlp<T>& net) {
  return 3 * net.width[0] + workspace(net);
}

// The thread's room has the position and momentum, then what ChainsInLanes needs.
template <class T, int kRoom, class Net>
COGEN_HD_LARGE Outcome<1> transition_in_thread(const Net& net, const Observed<T>& observed,
                                               const NoiseStream& stream,
                                               const TransitionSettings<>& settings,
                                               const ChainTile<T>& state) {
  T room[kRoom];
  ChainTile<T> chain = state;
  chain.position = room;
  chain.momentum = room + latent_size(net);
  Outcome<1> outcome;
  ChainsInLanes<T>::transition(net, observed, stream, settings, chain,
                               room + 2 * latent_size(net), outcome);
  return outcome;
}

// A chain of a thread. Net is Mlp<T>, or a StaticMlp.
template <class T, class Net>
struct ChainOfThread;

template <class T>
struct ChainOfThread<T, Mlp<T>> {
  static constexpr bool kKeepsLayers = true;
  static constexpr int kThreads = 1;

  static COGEN_HD int64_t shared_room(const Mlp<T>&) { return 0; }

  template <class Machine>
  static COGEN_HD Outcome<1> transition(const Machine& machine, const Mlp<T>& given,
                                        const int* first, const Observed<T>& observed,
                                        const NoiseStream& stream,
                                        const TransitionSettings<>& settings,
                                        const ChainTile<T>& state) {
    Mlp<T> net = given;
    const LayersPacked<T> layers{given, shared_numbers<T>(machine.shared), first};
    for (int k = 0; k < net.layers; ++k) {
      const Layer<T> layer = layers(k);
      net.weight[k] = layer.weight;
      net.bias[k] = layer.bias;
      net.back[k] = layer.back;
    }
    return transition_in_thread<T, kThreadRoom>(net, observed, stream, settings, state);
  }
};

template <class T, int kLatent, int kHidden, int kDepth, int kOut, Activation kKind>
struct ChainOfThread<T, StaticMlp<T, kLatent, kHidden, kDepth, kOut, kKind>> {
  static constexpr bool kKeepsLayers = true;
  static constexpr int kThreads = 1;

  static COGEN_HD int64_t shared_room(const Mlp<T>&) { return 0; }

  template <class Machine>
  static COGEN_HD Outcome<1> transition(const Machine& machine, const Mlp<T>& given,
                                        const int* /* first */, const Observed<T>& observed,
                                        const NoiseStream& stream,
                                        const TransitionSettings<>& settings,
                                        const ChainTile<T>& state) {
    StaticMlp<T, kLatent, kHidden, kDepth, kOut, kKind> net;
    net.numbers = shared_numbers<T>(machine.shared);
    net.slope = given.slope;
    net.last = given.activation[kDepth];
    return transition_in_thread<T, 3 * kLatent>(net, observed, stream, settings, state);
  }
};

// A chain of a warp. kHidden is the width of all hidden layers if there is code compiled for it, or
// 0; kInShared says whether the layers are copied to shared memory.
template <class T, int kHidden, bool kInShared>
struct ChainOfWarp {
  static constexpr bool kKeepsLayers = kInShared;
  static constexpr int kThreads = kWarp;

  static COGEN_HD int64_t shared_room(const Mlp<T>& net) {
    return 2 * padded(net.width[0]) + room_of_warp(net);
  }

  template <class Machine>
  static COGEN_HD Outcome<1> transition(const Machine& machine, const Mlp<T>& net,
                                        const int* first, const Observed<T>& observed,
                                        const NoiseStream& stream,
                                        const TransitionSettings<>& settings,
                                        const ChainTile<T>& state) {
    T* const numbers = shared_numbers<T>(machine.shared);
    T* const room = numbers + (kInShared ? first[net.layers] : 0) +
                    machine.thread / kWarp * shared_room(net);
    ChainTile<T> chain = state;
    chain.position = room;
    chain.momentum = room + padded(net.width[0]);
    T* const rest = room + 2 * padded(net.width[0]);
    if constexpr (kInShared) {
      const LayersPacked<T> layers{net, numbers, first};
      return transition_in_warp<kHidden>(machine, net, layers, observed, stream, settings, chain,
                                         rest);
    } else {
      return transition_in_warp<kHidden>(machine, net, LayersInPlace<T>{net}, observed, stream,
                                         settings, chain, rest);
    }
  }
};

// How many bytes of shared memory a block needs that moves so many chains at once.
template <class Chain, class T>
COGEN_HD int64_t shared_bytes_for(const Mlp<T>& net, const int* first, int64_t chains) {
  const int64_t layers = Chain::kKeepsLayers ? first[net.layers] : 0;
  return bytes_of_sums() +
         (layers + chains * Chain::shared_room(net)) * static_cast<int64_t>(sizeof(T));
}

template <class T, class Chain>
COGEN_HD int64_t shared_bytes(const DeviceRun<T>& device) {
  return shared_bytes_for<Chain>(device.run.net, device.first, device.tile_chains);
}

}  // namespace COGEN_ISA
}  // namespace cogen
