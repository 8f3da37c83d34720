// SPDX-License-Identifier: Apache-2.0

package l2

import (
	"errors"
	"time"

	"github.com/go-logr/logr"

	"github.com/causeway-lb/causeway/internal/announce/links"
)

// retryPort is how long a socket that could not be opened is left alone.
const retryPort = time.Second

// errNotOpened is for ports without a way to open them.
var errNotOpened = errors.New("no sockets")

// ports has the open ports.
type ports struct {
	open    func(now time.Time, key portKey, name string) (*port, error)
	metrics *Metrics
	reports reports // which get the addresses on ports that are closed
	log     logr.Logger

	all   map[portKey]*port
	retry map[portKey]time.Time // those that could not be opened
}

func newPorts(metrics *Metrics, r reports, log logr.Logger) *ports {
	return &ports{
		open:    func(time.Time, portKey, string) (*port, error) { return nil, errNotOpened },
		metrics: metrics, reports: r, log: log, all: map[portKey]*port{}, retry: map[portKey]time.Time{},
	}
}

// get returns the open port of a family on an interface, or nil if it cannot be
// opened now.
func (s *ports) get(now time.Time, k *links.Link, six bool) *port {
	key := portKey{k.Index, k.MAC, six}
	p := s.all[key]
	if p != nil && !p.conn.Bound() {
		s.log.Info("An interface was deleted and made again, opening its socket again", "interface", k.Name)
		s.close(now, p)
		p = nil
	}
	if p == nil {
		if now.Before(s.retry[key]) {
			return nil
		}
		var err error
		if p, err = s.open(now, key, k.Name); err != nil {
			s.retry[key] = now.Add(retryPort)
			s.log.Error(err, "Opening a socket failed, will try again", "interface", k.Name)
			return nil
		}
		delete(s.retry, key)
		s.all[key] = p
	}
	p.name, p.own, p.subnets = k.Name, k.Own, k.Subnets
	return p
}

// reopen closes ports whose socket has failed. due reports that a port is to be
// opened again, these and those that could not be opened.
func (s *ports) reopen(now time.Time) (due bool) {
	for _, p := range s.all {
		select {
		case <-p.failed:
			s.close(now, p)
			due = true
			if now.Sub(p.opened) < retryPort { // else immediately: its interface may be another one now
				s.retry[p.key] = now.Add(retryPort)
			}
		default:
		}
	}
	for key, at := range s.retry {
		if !now.Before(at) {
			delete(s.retry, key)
			due = true
		}
	}
	return due
}

// close stops everything on p.
func (s *ports) close(now time.Time, p *port) {
	for _, e := range p.entries {
		e.machine.Lost(now)
		s.reports.enqueue(e.addr)
		e.queued = time.Time{}
	}
	p.stop()
	s.count(p)
	delete(s.all, p.key)
}

// count brings the metrics up to date with the socket's counters.
func (s *ports) count(p *port) {
	c := p.conn.Counters()
	s.metrics.answers.WithLabelValues(p.protocol()).Add(float64(c.Answers - p.counted.Answers))
	s.metrics.limited.WithLabelValues(p.protocol()).Add(float64(c.Limited - p.counted.Limited))
	p.counted = c
}
