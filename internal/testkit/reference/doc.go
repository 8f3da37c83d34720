// SPDX-License-Identifier: Apache-2.0

// Package reference keeps docs/reference.md true: tests compare its tables with the
// flags of the programs, and with the conditions and the reasons that the product
// writes.
//
// # Reasons
//
// The reasons are found in the source, by name: what a field, parameter or variable
// named reason (or Reason) is given, the reason of an event, and constants whose name
// begins with Reason. What cannot be followed to a constant that way fails the test.
package reference
