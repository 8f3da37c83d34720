// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/network"
	"github.com/causeway-lb/causeway/internal/lab/traffic"
)

const (
	echoPort = 38002
	// patience is how long a request may take: this is about loss, not latency.
	patience = 3 * time.Second
)

// echo is the program of a Pod: it returns datagrams.
func echo() int {
	conn, err := net.ListenPacket("udp", fmt.Sprintf(":%d", echoPort))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	buffer := make([]byte, 1500)
	for {
		n, peer, err := conn.ReadFrom(buffer)
		if err != nil {
			return 1
		}
		_, _ = conn.WriteTo(buffer[:n], peer)
	}
}

// stream is one kind of traffic, whose results are read phase by phase.
type stream struct {
	name    string
	results func() traffic.Results
	stop    func()
}

// requests is a stream of HTTP requests, each over a connection of its own.
func requests(ctx context.Context, name string, from *network.Namespace, address string) stream {
	g := traffic.Generate(ctx, traffic.Config{From: from, Address: address, Interval: 20 * time.Millisecond, Timeout: patience})
	return stream{name, g.Results, func() { g.Stop() }}
}

// datagrams is a stream of questions, each from a port of its own.
func datagrams(ctx context.Context, name string, from *network.Namespace, address string) stream {
	ctx, cancel := context.WithCancel(ctx)
	var mu sync.Mutex
	var all traffic.Results
	var group sync.WaitGroup
	group.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			<-tick.C
			group.Go(func() {
				r := traffic.Result{Sent: time.Now()}
				r.Err = ping(context.WithoutCancel(ctx), from, address)
				r.Done = time.Now()
				mu.Lock()
				defer mu.Unlock()
				all = append(all, r)
			})
		}
	})
	return stream{name, func() traffic.Results {
		mu.Lock()
		defer mu.Unlock()
		return slices.SortedFunc(slices.Values(all), func(a, b traffic.Result) int { return a.Sent.Compare(b.Sent) })
	}, func() { cancel(); group.Wait() }}
}

// ping sends a datagram and waits for its return; it does not send it again.
func ping(ctx context.Context, from *network.Namespace, address string) error {
	conn, err := from.Dial(ctx, "udp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("echo")); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 16))
	return err
}

// held is connections that stay open.
type held struct {
	name string
	*traffic.Holder
	gone int // of those before
}

func hold(ctx context.Context, l *lab.Lab, name, address string) (*held, error) {
	h, err := traffic.Hold(ctx, l.Machine(lab.Client), address, 12)
	if err != nil {
		return nil, err
	}
	return &held{name: name, Holder: h}, nil
}
