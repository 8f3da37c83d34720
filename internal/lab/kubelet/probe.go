// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// eager is how often a probe runs that has not succeeded yet.
const eager = 250 * time.Millisecond

// probe runs the container's probes until ctx ends. What is to end the
// container is sent to sick, once.
func (c *container) probe(ctx context.Context, sick chan<- string) {
	if c.spec.StartupProbe != nil {
		ok := c.repeat(ctx, "Startup", c.spec.StartupProbe, func(ok bool) bool { return ok })
		if ctx.Err() != nil {
			return
		}
		if !ok {
			sick <- "Startup probe failed for good"
			return
		}
	}
	c.change(func() {
		c.started = true
		c.ready = c.spec.ReadinessProbe == nil
	})
	var both sync.WaitGroup
	if c.spec.ReadinessProbe != nil {
		both.Go(func() {
			c.repeat(ctx, "Readiness", c.spec.ReadinessProbe, func(ok bool) bool {
				c.change(func() { c.ready = ok })
				return false
			})
		})
	}
	if c.spec.LivenessProbe != nil {
		both.Go(func() {
			c.repeat(ctx, "Liveness", c.spec.LivenessProbe, func(ok bool) bool {
				if !ok {
					sick <- "Liveness probe failed"
				}
				return !ok
			})
		})
	}
	both.Wait()
}

// repeat probes and calls verdict with the first result and whenever it
// changes. It returns the result when verdict says so, and false when a startup
// probe has failed for good or ctx has ended.
//
// Failures count by time, not by number, since eager probes come faster than
// the period: threshold failures take (threshold - 1) periods.
func (c *container) repeat(ctx context.Context, kind string, probe *corev1.Probe, verdict func(bool) bool) bool {
	period := time.Duration(or(probe.PeriodSeconds, 10)) * time.Second
	patience := time.Duration(max(probe.FailureThreshold, 1)-1) * period
	if !sleep(ctx, time.Duration(probe.InitialDelaySeconds)*time.Second) {
		return false
	}
	known, good := false, false
	succeeded := int32(0)
	var failing time.Time
	for {
		err := c.probeOnce(ctx, probe)
		if ctx.Err() != nil {
			return false
		}
		if err == nil {
			succeeded, failing = succeeded+1, time.Time{}
		} else if succeeded = 0; failing.IsZero() {
			failing = time.Now()
			if good {
				c.w.k.events.Eventf(c.w.current(), corev1.EventTypeWarning, "Unhealthy", "%s probe failed: %v", kind, err)
			}
		}
		up := succeeded >= max(probe.SuccessThreshold, 1)
		down := err != nil && time.Since(failing) >= patience
		if down && kind == "Startup" {
			return false
		}
		if (up || down) && (!known || up != good) {
			known, good = true, up
			if verdict(good) {
				return good
			}
		}
		pause := period
		if !good && kind != "Liveness" {
			pause = eager
		}
		if !sleep(ctx, pause) {
			return false
		}
	}
}

func (c *container) probeOnce(ctx context.Context, probe *corev1.Probe) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(max(probe.TimeoutSeconds, 1))*time.Second)
	defer cancel()
	switch {
	case probe.Exec != nil:
		return c.exec(ctx, probe.Exec.Command)
	case probe.HTTPGet != nil:
		return c.httpGet(ctx, probe.HTTPGet)
	case probe.TCPSocket != nil:
		address, err := c.address(probe.TCPSocket.Host, probe.TCPSocket.Port)
		if err != nil {
			return err
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			err = conn.Close()
		}
		return err
	}
	return fmt.Errorf("probe of a kind that the lab doesn't have")
}

func (c *container) runHook(ctx context.Context, hook *corev1.LifecycleHandler) error {
	switch {
	case hook.Exec != nil:
		return c.exec(ctx, hook.Exec.Command)
	case hook.HTTPGet != nil:
		return c.httpGet(ctx, hook.HTTPGet)
	case hook.Sleep != nil:
		sleep(ctx, time.Duration(hook.Sleep.Seconds)*time.Second)
	}
	return nil
}

// exec runs a command in the container.
func (c *container) exec(ctx context.Context, command []string) error {
	cmd, err := c.enter(ctx, command)
	if err != nil {
		return err
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("execute %s: %w: %s", command[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}

var prober = &http.Client{
	Transport: &http.Transport{
		DisableKeepAlives: true,
		// The kubelet doesn't verify either: the certificate is for other names.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec
	},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func (c *container) httpGet(ctx context.Context, get *corev1.HTTPGetAction) error {
	address, err := c.address(get.Host, get.Port)
	if err != nil {
		return err
	}
	url := strings.ToLower(or(string(get.Scheme), "http")) + "://" + address + "/" + strings.TrimPrefix(get.Path, "/")
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	request.Header.Set("User-Agent", "kube-probe/lab")
	for _, header := range get.HTTPHeaders {
		request.Header.Set(header.Name, header.Value)
	}
	response, err := prober.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(response.Body, 200))
	if response.StatusCode < 200 || response.StatusCode >= 400 {
		return fmt.Errorf("GET %s: %s: %s", url, response.Status, strings.TrimSpace(string(body)))
	}
	return nil
}

// address resolves a probe's target: the Pod's own address unless a host is
// given, a port by number or by a container port's name.
func (c *container) address(host string, target intstr.IntOrString) (string, error) {
	c.w.mu.Lock()
	addresses := c.w.podIPs()
	c.w.mu.Unlock()
	if host == "" && len(addresses) > 0 {
		host = addresses[0].String()
	}
	number := target.IntValue()
	if target.Type == intstr.String {
		for _, p := range c.spec.Ports {
			if p.Name == target.StrVal {
				number = int(p.ContainerPort)
			}
		}
	}
	if number == 0 {
		return "", fmt.Errorf("no container port is named %q", target.StrVal)
	}
	return net.JoinHostPort(host, strconv.Itoa(number)), nil
}
