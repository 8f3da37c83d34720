// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/controllers/gossipkey"
)

var _ = Describe("the gossip key", func() {
	It("is made, and made again when it is lost", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		r := &gossipkey.Reconciler{Client: k8sClient, Namespace: namespace}
		secret := &corev1.Secret{}
		name := client.ObjectKey{Namespace: namespace, Name: v1alpha1.GossipSecret}
		Expect(r.Ensure(ctx)).To(Succeed())
		Expect(k8sClient.Get(ctx, name, secret)).To(Succeed())
		Expect(secret.Data[v1alpha1.GossipKey]).To(HaveLen(gossipkey.KeySize))
		version := secret.ResourceVersion
		Expect(r.Ensure(ctx)).To(Succeed())
		Expect(k8sClient.Get(ctx, name, secret)).To(Succeed())
		Expect(secret.ResourceVersion).To(Equal(version), "the second time nothing is written")

		By("waiting until it is old, in the reconciler's time")
		later := time.Now().Add(gossipkey.KeyAge + time.Minute)
		r.Now = func() time.Time { return later }
		first := secret.Data[v1alpha1.GossipKey]
		Expect(r.Ensure(ctx)).To(Succeed())
		Expect(k8sClient.Get(ctx, name, secret)).To(Succeed())
		next := secret.Data[v1alpha1.GossipPreviousKey]
		Expect(secret.Data[v1alpha1.GossipKey]).To(Equal(first))
		Expect(next).To(HaveLen(gossipkey.KeySize))
		later = later.Add(gossipkey.KeySpread + time.Minute)
		Expect(r.Ensure(ctx)).To(Succeed())
		Expect(k8sClient.Get(ctx, name, secret)).To(Succeed())
		Expect(secret.Data).To(Equal(map[string][]byte{v1alpha1.GossipKey: next, v1alpha1.GossipPreviousKey: first}))

		Expect(k8sClient.Delete(ctx, secret)).To(Succeed())
		Expect(r.Ensure(ctx)).To(Succeed())
		Expect(k8sClient.Get(ctx, name, secret)).To(Succeed())
	})

	It("is in the system namespace, made by the running controller", func(ctx SpecContext) {
		secret := &corev1.Secret{}
		Eventually(func() error {
			return k8sClient.Get(ctx, client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.GossipSecret}, secret)
		}).Should(Succeed())
	})
})
