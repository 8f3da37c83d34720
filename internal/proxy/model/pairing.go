// SPDX-License-Identifier: Apache-2.0

package model

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// pairing finds which of the Service's ports a port of a slice carries.
//
// They have the same name and protocol, once the slices have followed the Service.
// Until then, when a port was given another name, two have swapped theirs, or
// one has changed its protocol, names lead nowhere or astray, although nothing about
// the endpoints has changed. But slices that a controller derives from a Service
// with a selector have the port's targetPort too. So there, names count for
// what agrees in number, and what is left is paired by number, and then by name: that
// is a port whose targetPort has changed. A targetPort that is a name says no
// number; a single port of that kind takes the single one that is left. Where it is
// known which ports the Service had when the slice was written, these say it of
// every port that is still there under another name.
//
// Slices of a Service without a selector are the user's own, and are taken at
// their word.
type pairing struct {
	ports   []corev1.ServicePort
	byKey   map[portKey]int
	derived bool
}

func newPairing(svc *corev1.Service) *pairing {
	p := &pairing{ports: svc.Spec.Ports, byKey: make(map[portKey]int, len(svc.Spec.Ports)), derived: len(svc.Spec.Selector) > 0}
	for i := range p.ports {
		if proto, ok := protocolOf(p.ports[i].Protocol); ok {
			p.byKey[portKey{p.ports[i].Name, proto}] = i
		}
	}
	return p
}

// target is the number of a Service's port among those of its Pods, 0 if that is
// each Pod's own.
func target(p *corev1.ServicePort) uint16 {
	if p.TargetPort.Type != intstr.Int || p.TargetPort.IntVal < 1 || p.TargetPort.IntVal > 65535 {
		return 0
	}
	return uint16(p.TargetPort.IntVal)
}

// carried is a port of a slice and the index of the Service's that it carries,
// negative for none.
type carried struct {
	key    portKey
	number uint16
	at     int
}

// of gives the usable ports of a slice. former are the Service's when it was
// written, if they were others.
func (p *pairing) of(sl *sliceT, former []corev1.ServicePort) []carried {
	out := make([]carried, 0, len(sl.Ports))
	settled := true
	for i := range sl.Ports {
		key, number, ok := slicePort(&sl.Ports[i])
		if !ok {
			continue
		}
		at, ok := p.byKey[key]
		if !ok {
			at = -1
		}
		out = append(out, carried{key, number, at})
		settled = settled && ok && p.agrees(at, number)
	}
	if !p.derived {
		return out
	}
	if former != nil {
		p.follow(out, former)
	}
	if former != nil || !settled {
		p.settle(out)
	}
	return out
}

// follow pairs by what the Service's ports were. A port is the same one whatever
// its name if what is dialled and the targetPort are.
func (p *pairing) follow(cs []carried, former []corev1.ServicePort) {
	type same struct {
		port   int32
		proto  Protocol
		target intstr.IntOrString
	}
	now, was := make(map[same]int, len(p.ports)), make(map[portKey]same, len(former))
	for i := range p.ports {
		if proto, ok := protocolOf(p.ports[i].Protocol); ok {
			now[same{p.ports[i].Port, proto, p.ports[i].TargetPort}] = i
		}
	}
	for i := range former {
		if proto, ok := protocolOf(former[i].Protocol); ok {
			was[portKey{former[i].Name, proto}] = same{former[i].Port, proto, former[i].TargetPort}
		}
	}
	for i := range cs {
		if old, ok := was[cs[i].key]; ok {
			at, ok := now[old]
			if !ok {
				at = -1
			}
			cs[i].at = at
		}
	}
}

func (p *pairing) agrees(at int, number uint16) bool {
	t := target(&p.ports[at])
	return t == 0 || t == number
}

// settle pairs the ports of a slice that has not followed the Service. The cost
// follows the number of ports of both.
func (p *pairing) settle(cs []carried) {
	taken := make([]bool, len(p.ports))
	for i := range cs {
		if c := &cs[i]; c.at >= 0 && p.agrees(c.at, c.number) {
			taken[c.at] = true
		} else {
			c.at = -1
		}
	}
	// by pairs what is left by what a port of each side says.
	type key struct {
		portKey
		number uint16
	}
	by := func(ofPort func(port *corev1.ServicePort, proto Protocol) key, ofSlice func(*carried) key) {
		left := map[key][]int{}
		for i := range p.ports {
			if proto, ok := protocolOf(p.ports[i].Protocol); ok && !taken[i] {
				k := ofPort(&p.ports[i], proto)
				left[k] = append(left[k], i)
			}
		}
		for i := range cs {
			c := &cs[i]
			if c.at >= 0 {
				continue
			}
			if is := left[ofSlice(c)]; len(is) > 0 {
				c.at, taken[is[0]] = is[0], true
				left[ofSlice(c)] = is[1:]
			}
		}
	}
	by(func(port *corev1.ServicePort, proto Protocol) key { return key{portKey{"", proto}, target(port)} },
		func(c *carried) key { return key{portKey{"", c.key.protocol}, c.number} })
	by(func(port *corev1.ServicePort, proto Protocol) key { return key{portKey{port.Name, proto}, 0} },
		func(c *carried) key { return key{c.key, 0} })
	by(func(port *corev1.ServicePort, _ Protocol) key { return key{number: target(port)} },
		func(c *carried) key { return key{number: c.number} })
	for _, proto := range []Protocol{TCP, UDP, SCTP} {
		p.single(cs, taken, proto)
	}
}

// single pairs the one port whose number nobody knows with the one that is left.
func (p *pairing) single(cs []carried, taken []bool, proto Protocol) {
	open := func(i int) bool {
		of, ok := protocolOf(p.ports[i].Protocol)
		return ok && of == proto && !taken[i] && target(&p.ports[i]) == 0
	}
	var ports, carriers []int
	for i := range p.ports {
		if open(i) {
			ports = append(ports, i)
		}
	}
	for i := range cs {
		if cs[i].at < 0 && cs[i].key.protocol == proto {
			carriers = append(carriers, i)
		}
	}
	if len(ports) == 1 && len(carriers) == 1 {
		cs[carriers[0]].at, taken[ports[0]] = ports[0], true
	}
}
