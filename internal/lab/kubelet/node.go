// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// port is where the API server fetches logs.
const port = 10250

// keepNode registers the node and renews its lease until ctx ends.
func (k *Kubelet) keepNode(ctx context.Context) error {
	var node *corev1.Node
	registered := retry(ctx, func() (err error) {
		if node, err = k.register(ctx); err != nil {
			k.log.V(1).Info("Registering", "reason", err.Error())
		}
		return err
	})
	if !registered {
		return nil
	}
	k.log.Info("Registered", "node", node.Name)
	interval := k.config.LeaseInterval
	if interval == 0 {
		interval = 10 * time.Second
	}
	for {
		if err := k.renewLease(ctx, node, interval); err != nil && ctx.Err() == nil {
			k.log.Error(err, "Lease not renewed")
		}
		if !sleep(ctx, interval) {
			return nil
		}
	}
}

// register creates the Node, or writes the status of one that is there from
// an earlier life of this node.
func (k *Kubelet) register(ctx context.Context) (*corev1.Node, error) {
	want := k.node()
	got, err := k.client.CoreV1().Nodes().Create(ctx, want, metav1.CreateOptions{})
	if err == nil {
		return got, nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("create Node: %w", err)
	}
	patch, err := json.Marshal(map[string]any{"status": want.Status})
	if err != nil {
		return nil, fmt.Errorf("encode Node status: %w", err)
	}
	// A strategic merge takes the type of an address for its key, and makes
	// duplicates of two of one type.
	got, err = k.client.CoreV1().Nodes().Patch(ctx, want.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil {
		return nil, fmt.Errorf("patch Node status: %w", err)
	}
	return got, nil
}

func (k *Kubelet) node() *corev1.Node {
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: k.config.Node,
			Labels: map[string]string{
				corev1.LabelHostname:   k.config.Node,
				corev1.LabelOSStable:   "linux",
				corev1.LabelArchStable: runtime.GOARCH,
			},
		},
		Spec: corev1.NodeSpec{Taints: k.config.Taints, PodCIDR: k.config.PodCIDRs[0].String()},
	}
	for key, value := range k.config.Labels {
		node.Labels[key] = value
	}
	for _, cidr := range k.config.PodCIDRs {
		node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, cidr.String())
	}
	for _, address := range k.config.Addresses {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: address.String()})
	}
	node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: k.config.Node})
	node.Status.Capacity = corev1.ResourceList{
		corev1.ResourceCPU:              resource.MustParse("8"),
		corev1.ResourceMemory:           resource.MustParse("16Gi"),
		corev1.ResourceEphemeralStorage: resource.MustParse("16Gi"),
		corev1.ResourcePods:             resource.MustParse("110"),
	}
	node.Status.Allocatable = node.Status.Capacity
	node.Status.Conditions = nodeConditions(metav1.Now())
	node.Status.DaemonEndpoints.KubeletEndpoint.Port = port
	node.Status.NodeInfo = corev1.NodeSystemInfo{
		KubeletVersion: k.config.Version, OperatingSystem: "linux", Architecture: runtime.GOARCH,
		OSImage: "Causeway lab", KernelVersion: kernelVersion(), ContainerRuntimeVersion: "lab://1",
	}
	return node
}

func kernelVersion() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(name.Release[:])
}

func nodeConditions(now metav1.Time) []corev1.NodeCondition {
	condition := func(kind corev1.NodeConditionType, status corev1.ConditionStatus, reason, message string) corev1.NodeCondition {
		return corev1.NodeCondition{
			Type: kind, Status: status, Reason: reason, Message: message,
			LastHeartbeatTime: now, LastTransitionTime: now,
		}
	}
	return []corev1.NodeCondition{
		condition(corev1.NodeMemoryPressure, corev1.ConditionFalse, "KubeletHasSufficientMemory", "The lab doesn't limit memory"),
		condition(corev1.NodeDiskPressure, corev1.ConditionFalse, "KubeletHasNoDiskPressure", "The lab doesn't limit disk space"),
		condition(corev1.NodePIDPressure, corev1.ConditionFalse, "KubeletHasSufficientPID", "The lab doesn't limit processes"),
		condition(corev1.NodeReady, corev1.ConditionTrue, "KubeletReady", "The lab's node is up"),
	}
}

// renewLease is the node's heart-beat (KEP-589).
func (k *Kubelet) renewLease(ctx context.Context, node *corev1.Node, interval time.Duration) error {
	leases := k.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	now := metav1.NowMicro()
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Name:            node.Name,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}},
		},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity:       ptr.To(node.Name),
			LeaseDurationSeconds: ptr.To(int32(4 * interval / time.Second)),
			RenewTime:            &now,
		},
	}
	old, err := leases.Get(ctx, node.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = leases.Create(ctx, lease, metav1.CreateOptions{})
		return err
	}
	if err != nil {
		return err
	}
	old.Spec = lease.Spec
	_, err = leases.Update(ctx, old, metav1.UpdateOptions{})
	return err
}
