// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netns"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/ipvs"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/test/bench/proxybench"
)

const (
	defaultSizes = "1,1000,10000"
	changes      = 100
	connections  = 200

	podAddress = "10.244.1.2"
	// answering is the number of the Service that connections are made to.
	answering = 65000
)

// guest measures in the machine.
func guest(ctx context.Context) error {
	sizes, err := proxybench.Numbers("BENCH_SIZES", defaultSizes)
	if err != nil {
		return err
	}
	dial, err := network(ctx)
	if err != nil {
		return err
	}
	if err := connect("direct", dial, tell, netip.AddrPortFrom(netip.MustParseAddr(podAddress), proxybench.EndpointPort)); err != nil {
		return err
	}
	// Loading modules, and whatever else happens only once, is no part of it.
	if err := size(ctx, 1, dial, func(figure) error { return nil }); err != nil {
		return fmt.Errorf("warm up: %w", err)
	}
	for _, n := range sizes {
		forgetReals()
		if err := size(ctx, n, dial, tell); err != nil {
			return fmt.Errorf("%d Services: %w", n, err)
		}
	}
	return nil
}

// forgetReals waits until the kernel has forgotten the real servers of the last
// measurement: it keeps deleted ones for two minutes, and looks through all of
// them for each that is added. An idle machine's clock jumps, so this is quick.
func forgetReals() { time.Sleep(5 * time.Minute) }

func tell(f figure) error {
	line, err := json.Marshal(f)
	if err == nil {
		_, err = fmt.Println(string(line))
	}
	return err
}

// count gives the instructions that something takes.
func count(f func() error) (float64, error) {
	start := time.Now()
	err := f()
	return float64(time.Since(start).Nanoseconds()), err
}

func size(ctx context.Context, n int, dial dialer, tell func(figure) error) error {
	name := fmt.Sprintf("%dx%d", n, proxybench.EndpointsEach)
	d := desired(n)
	b, err := ipvs.New(ipvs.Config{})
	if err != nil {
		return err
	}
	defer b.Close()
	if err := b.Cleanup(ctx); err != nil {
		return err
	}
	runtime.GC()
	full, err := count(func() error { _, err := b.Resync(ctx, d); return err })
	if err != nil {
		return err
	}
	if err := tell(figure{name, "full_sync", []float64{full}}); err != nil {
		return err
	}
	// What the collector does with a heap of all Services is no part of a change.
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	if err := follow(ctx, name, b, d, n, tell); err != nil {
		return err
	}
	if err := connect(name, dial, tell, netip.AddrPortFrom(proxybench.ClusterIP(answering), 80)); err != nil {
		return err
	}
	return b.Cleanup(ctx)
}

// follow has the backend follow changes: of endpoints, then new Services.
func follow(ctx context.Context, name string, b *ipvs.Backend, d model.Desired, n int, tell func(figure) error) error {
	for _, c := range []struct {
		metric string
		next   func(k int) *model.Service
	}{
		{"endpoint_change", func(k int) *model.Service { return service(k*7919%n, proxybench.SpareAddr(k+1)) }},
		{"service_add", func(k int) *model.Service { return service(n+k, netip.Addr{}) }},
	} {
		f := figure{name, c.metric, nil}
		for k := range changes {
			svc := c.next(k)
			step := backend.Delta{Node: d.Node, Services: []model.Change{{Name: svc.Name, Old: d.Services[svc.Name], New: svc}}}
			d.Services[svc.Name] = svc
			took, err := count(func() error {
				r, err := b.Apply(ctx, step)
				if err == nil && r.Added == 0 {
					err = fmt.Errorf("%s: not a change: %+v", c.metric, r)
				}
				return err
			})
			if err != nil {
				return err
			}
			f.Instructions = append(f.Instructions, took)
		}
		if err := tell(f); err != nil {
			return err
		}
	}
	return nil
}

// service is Service i; its first endpoint is another one if first is valid.
func service(i int, first netip.Addr) *model.Service {
	t := &model.Target{}
	for e, a := range proxybench.EndpointsOf(i) {
		if e == 0 && first.IsValid() {
			a = first
		}
		t.Endpoints = append(t.Endpoints, model.Endpoint{AddrPort: netip.AddrPortFrom(a, proxybench.EndpointPort), Weight: 1})
	}
	return &model.Service{
		Name: types.NamespacedName{Namespace: proxybench.Namespace, Name: proxybench.ServiceName(i)},
		Frontends: []model.Frontend{{
			Key:    model.Key{Addr: proxybench.ClusterIP(i), Port: 80, Protocol: model.TCP},
			Inside: t, Outside: t,
		}},
	}
}

// desired has n Services, and one more, whose endpoint is the Pod that answers.
func desired(n int) model.Desired {
	d := model.Desired{
		Node:     model.Node{Name: proxybench.NodeName, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}},
		Services: map[types.NamespacedName]*model.Service{},
	}
	for i := range n {
		svc := service(i, netip.Addr{})
		d.Services[svc.Name] = svc
	}
	svc := service(answering, netip.Addr{})
	pod := &model.Target{Endpoints: []model.Endpoint{{
		AddrPort: netip.AddrPortFrom(netip.MustParseAddr(podAddress), proxybench.EndpointPort), Local: true, Weight: 1,
	}}}
	svc.Frontends[0].Inside, svc.Frontends[0].Outside = pod, pod
	d.Services[svc.Name] = svc
	return d
}

// dialer connects from the client's namespace.
type dialer func(to netip.AddrPort) (net.Conn, error)

// network makes a client and a Pod that greets, with this machine between them.
func network(ctx context.Context) (dialer, error) {
	for line := range strings.Lines(`netns add client
netns add pod
link add lan type veth peer name eth0 netns client
link add cable type veth peer name eth0 netns pod
link set lan up
link set cable up
address add 192.0.2.11/24 dev lan
address add 10.244.1.1/24 dev cable
-n client link set eth0 up
-n client address add 192.0.2.100/24 dev eth0
-n client route add default via 192.0.2.11
-n pod link set eth0 up
-n pod address add 10.244.1.2/24 dev eth0
-n pod route add default via 10.244.1.1
`) {
		if out, err := exec.CommandContext(ctx, "ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("ip %s: %w: %s", strings.TrimSpace(line), err, out)
		}
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return nil, err
	}
	var listener net.Listener
	err := in("pod", func() (err error) {
		listener, err = net.Listen("tcp4", ":"+strconv.Itoa(proxybench.EndpointPort))
		return err
	})
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello\n")
			_ = c.Close()
		}
	}()
	requests := make(chan netip.AddrPort)
	type answer struct {
		net.Conn
		error
	}
	answers := make(chan answer)
	go func() {
		_ = in("client", func() error {
			for to := range requests {
				c, err := net.DialTimeout("tcp4", to.String(), 10*time.Second)
				answers <- answer{c, err}
			}
			return nil
		})
	}()
	return func(to netip.AddrPort) (net.Conn, error) {
		requests <- to
		a := <-answers
		return a.Conn, a.error
	}, nil
}

// in runs f on a thread that is in a namespace.
func in(name string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		at, err := netns.GetFromName(name)
		if err == nil {
			err = netns.Set(at)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// connect counts connections, one after the other.
func connect(name string, dial dialer, tell func(figure) error, to netip.AddrPort) error {
	f := figure{name, "connection", nil}
	for range connections {
		took, err := count(func() error {
			c, err := dial(to)
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, c)
			_ = c.Close()
			return err
		})
		if err != nil {
			return err
		}
		f.Instructions = append(f.Instructions, took)
	}
	return tell(f)
}
