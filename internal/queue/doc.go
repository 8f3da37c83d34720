// SPDX-License-Identifier: Apache-2.0

// Package queue is the way from what is watched to the work queues of
// controllers: watches that keep an index up to date and say which objects a
// change concerns (Source), bursts of changes that become one event
// (Debouncer), writes that are spaced (WriteThrottle), and the times of retries.
//
//	informers ──On──> index ──keys──> Source ──> queues of the controllers
//	changes in memory ──Enqueue──> Debouncer ────────┘
//
// controller-runtime's own source.Kind feeds one controller; an index that
// several read from would be updated several times, and none of them would know
// when the others have seen the initial list.
//
// It imports no other package of this module.
package queue
