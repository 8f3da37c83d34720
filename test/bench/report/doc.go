// SPDX-License-Identifier: Apache-2.0

// Package report is the output of every benchmark: a table for people on standard
// output, and one JSON object per line in build/bench/NAME.json.
//
//	{"bench":"nftables-sync","case":"10000x5","metric":"full_sync","unit":"s",
//	 "ours":{"p50":0.2,"p99":0.25,"n":5},
//	 "peer":{"name":"kube-proxy v1.37.2 nftables","p50":14.6,"p99":15.1,"n":5},
//	 "ratio":73.0}
//
// ratio is always how many times better than the peer: above 1 is better, for
// metrics of which less is better (a time) and more is better (a rate) alike.
package report
