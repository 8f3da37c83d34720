// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"github.com/causeway-lb/causeway/internal/netlink/nft"
)

// fillMessages is how many messages of elements, of 400 each, one transaction
// of a fresh table carries.
const fillMessages = 16

// fill makes a fresh table but for the chains that hang on hooks, in several
// transactions: nothing of it is visible to packets yet. The kernel works on
// one while the next is rendered, and has the time to let its hash tables
// grow, which it does in the background. Rules come before elements, as each
// costs a walk over the maps that it looks up.
func (p *plan) fill(c *nft.Conn) error {
	var tx nft.Batch
	p.create(&tx)
	for _, ch := range p.chains {
		if ch.Hook == nil {
			tx.AddChain(ch)
		}
	}
	for _, ch := range p.chains {
		if ch.Hook == nil {
			tx.AppendRules(ch)
		}
	}
	if err := c.Commit(&tx); err != nil {
		return err
	}
	var open [numSets]*nft.Batch
	commits := newPipe(c)
	p.everything(func(e element) {
		if !e.set.flat() || e.set.shared() {
			if !p.isNew(e) {
				return
			}
		} else {
			p.report.Objects++
		}
		p.report.Added++
		b := open[e.set]
		if b == nil {
			b = commits.batch()
			open[e.set] = b
		}
		b.AddElement(p.f.table, e.set.String(), e.Element)
		if b.Len() > fillMessages {
			commits.send(b)
			open[e.set] = nil
		}
	})
	for _, b := range open {
		if b != nil {
			commits.send(b)
		}
	}
	return commits.close()
}

// pipe commits transactions while the next ones are being written.
type pipe struct {
	work, idle chan *nft.Batch
	done       chan error
}

// newPipe gives a pipe that uses c until it is closed.
func newPipe(c *nft.Conn) *pipe {
	p := &pipe{work: make(chan *nft.Batch, 1), idle: make(chan *nft.Batch, numSets), done: make(chan error, 1)}
	go func() {
		var err error
		for b := range p.work {
			if err == nil {
				err = c.Commit(b)
			}
			b.Reset()
			select {
			case p.idle <- b:
			default:
			}
		}
		p.done <- err
	}()
	return p
}

// batch gives an empty batch, a used one if there is one.
func (p *pipe) batch() *nft.Batch {
	select {
	case b := <-p.idle:
		return b
	default:
		return &nft.Batch{}
	}
}

// send hands a batch over. After an error batches are thrown away.
func (p *pipe) send(b *nft.Batch) { p.work <- b }

// close waits for the last commit and gives the first error.
func (p *pipe) close() error {
	close(p.work)
	return <-p.done
}
